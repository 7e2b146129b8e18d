"""Contexts of an agent's requests: what was sampled stays as sampled where the history has it, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.agents.contexts.asked import Asked
from lpo_ray.agents.contexts.histories import (
    ANOTHER,
    CHANGED_ANSWER,
    CHANGED_TOOLS,
    CUT,
    LEFT_OUT,
    REWROTE,
    History,
    Placed,
    Prompts,
    Reply,
    Style,
)
from lpo_ray.policy.tokenizer import ChatStyle, Tokenizer
from lpo_ray.tasks.base_policy import character_tokenizer
from tests.support.chat_tokenizers import PUBLISHED, QWEN3, byte_tokenizer

QWEN = PUBLISHED["qwen3"]
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "17*25?"}
MORE = {"role": "user", "content": "Sure?"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALLS = [{"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"a": 1}}}]


def said(text: str, **other: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **other}


def tool(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": "abcdefghi"}


class Agent:
    """An agent whose calls are placed and answered one after the other."""

    def __init__(self, tokenizer: Tokenizer = QWEN, *, plain: bool = False) -> None:
        self.tokenizer = tokenizer
        self.history = History(Prompts(tokenizer, Style(ChatStyle(), plain)))
        self.tokens: list[np.ndarray] = []
        """context and answer of each call"""

    def asks(self, *messages: dict[str, Any], **other: Any) -> Placed:
        return self.history.place(Asked(list(messages), **other))

    def continues(self, text: str, **other: Any) -> Placed:
        return self.history.place(Asked(prompt=text, calls="none", **other))

    def gets(
        self, asked: Asked, ids: np.ndarray | str, message: dict[str, Any] | None = None, *, ended: bool = True,
        text: str | None = None, stop: str | None = None,
    ) -> np.ndarray:  # fmt: skip
        if isinstance(ids, str):
            ids = self.tokenizer.encode(ids)
        if ended:
            ids = np.append(ids, self.tokenizer.eos_token_id)
        shown = self.tokenizer.decode_plain(ids) if text is None else text
        placed = self.history.place(asked)
        self.history.remember(asked, placed.context_ids, ids, Reply(message or said(shown), shown, stop), placed.parent)
        self.tokens.append(np.concatenate([placed.context_ids, ids]))
        return self.tokens[-1]

    def keeps(self, placed: Placed, place: int = -1) -> bool:
        before = self.tokens[place]
        return np.array_equal(placed.context_ids[: len(before)], before)

    def shown(self, placed: Placed) -> str:
        return self.tokenizer.show(placed.context_ids)

    def as_text(self, *messages: dict[str, Any], **other: Any) -> list[int]:
        return Prompts(self.tokenizer, Style(ChatStyle())).whole(Asked(list(messages), **other)).tolist()


@given(st.data())
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_next_context_begins_with_this_one_and_what_was_sampled(name: str, data: st.DataObject) -> None:
    """Any tokens: broken UTF-8, tokens that no text is encoded to, special tokens anywhere, cut off or ended."""
    tokenizer = PUBLISHED[name]
    agent, messages = Agent(tokenizer), [ASKED]
    for _ in range(data.draw(st.integers(1, 3))):
        ids = np.array(data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=12)))
        agent.gets(Asked(messages), ids, ended=data.draw(st.booleans()))
        text = tokenizer.decode_plain(agent.tokens[-1][len(agent.history.place(Asked(messages)).context_ids) :])
        messages = [*messages, said(text), MORE]
        placed = agent.asks(*messages)
        assert agent.keeps(placed) and placed.began == "" and len(placed.context_ids) > len(agent.tokens[-1])


def test_the_first_request_is_the_template() -> None:
    agent = Agent()
    placed = agent.asks(SYSTEM, ASKED)
    assert placed.context_ids.tolist() == agent.as_text(SYSTEM, ASKED) and placed.began == ""


def test_an_answer_that_was_cut_off_is_ended_by_the_template() -> None:
    agent = Agent()
    agent.gets(Asked([ASKED]), "4", ended=False)
    placed = agent.asks(ASKED, said("4"), MORE)
    assert agent.keeps(placed) and agent.shown(placed).count("<|im_end|>") == 3
    assert "4<|im_end|>\n<|im_start|>user\nSure?" in agent.shown(placed)


@pytest.mark.parametrize(
    ("messages", "began"),
    [
        ([{"role": "user", "content": "18*25?"}, said("425"), MORE], REWROTE),
        ([ASKED, said("426"), MORE], CHANGED_ANSWER),
        ([ASKED, said("425 "), MORE], CHANGED_ANSWER),
        ([ASKED, said("4"), MORE], LEFT_OUT),
        ([SYSTEM, ASKED, said("425"), MORE], ANOTHER),
        ([{"role": "user", "content": "Another question"}], ANOTHER),
    ],
)
def test_what_the_agent_changed_is_made_of_text_with_a_reason(messages: list[dict], began: str) -> None:
    agent = Agent()
    agent.gets(Asked([ASKED]), "425")
    placed = agent.asks(*messages)
    assert placed.context_ids.tolist() == agent.as_text(*messages)
    wanted = {REWROTE: (REWROTE, ANOTHER)}.get(began, (began,))
    assert placed.began in wanted


def test_a_history_that_is_rewritten_in_its_middle_keeps_what_stands_before() -> None:
    agent = Agent()
    agent.gets(Asked([ASKED]), "425")
    agent.gets(Asked([ASKED, said("425"), MORE]), "yes")
    edited = agent.asks(ASKED, said("425"), {"role": "user", "content": "Really?"}, said("yes"), MORE)
    assert agent.keeps(edited, 0) and not agent.keeps(edited, 1) and edited.began == REWROTE
    answer = agent.asks(ASKED, said("425"), MORE, said("no"), MORE)
    assert agent.keeps(answer, 0) and not agent.keeps(answer, 1) and answer.began == CHANGED_ANSWER


def test_a_tool_result_that_is_edited_keeps_the_calls_before_it() -> None:
    agent, asked = Agent(), Asked([ASKED], tools=TOOLS)
    agent.gets(asked, '<tool_call>{"name": "add",  "arguments": {"a":1}}</tool_call>', said("", tool_calls=CALLS))
    first = [ASKED, said("", tool_calls=CALLS), tool("425")]
    assert agent.keeps(agent.asks(*first, tools=TOOLS))
    agent.gets(Asked(first, tools=TOOLS), "it is 425")
    edited = [ASKED, said("", tool_calls=CALLS), tool("(removed)"), said("it is 425"), MORE]
    placed = agent.asks(*edited, tools=TOOLS)
    assert agent.keeps(placed, 0) and not agent.keeps(placed, 1) and placed.began == REWROTE
    assert "(removed)" in agent.shown(placed)


def test_arguments_that_a_client_writes_in_another_way_are_the_same() -> None:
    agent = Agent()
    agent.gets(Asked([ASKED], tools=TOOLS), '{"name":"add"}', said("", tool_calls=CALLS))
    renamed = [{**CALLS[0], "id": "another00"}]
    for calls in (CALLS, renamed):
        assert agent.keeps(agent.asks(ASKED, {"role": "assistant", "tool_calls": calls}, tool("2"), tools=TOOLS))
    other = [{**CALLS[0], "function": {"name": "add", "arguments": {"a": 2}}}]
    placed = agent.asks(ASKED, said("", tool_calls=other), tool("2"), tools=TOOLS)
    assert not agent.keeps(placed) and placed.began == CHANGED_ANSWER


def test_thinking_that_a_parser_took_out_is_kept_whether_it_is_sent_back_or_not() -> None:
    agent = Agent()
    agent.gets(Asked([ASKED]), "<think>hm</think>425", said("425", reasoning="hm", reasoning_content="hm"))
    assert agent.keeps(agent.asks(ASKED, said("425"), MORE))
    assert agent.keeps(agent.asks(ASKED, said("425", reasoning="hm"), MORE))
    changed = agent.asks(ASKED, said("425", reasoning="I did not think that"), MORE)
    assert not agent.keeps(changed) and changed.began != ""


def test_thinking_that_the_agent_took_out_is_another_history() -> None:
    agent = Agent()
    agent.gets(Asked([ASKED]), "<think>hm</think>425")
    assert agent.keeps(agent.asks(ASKED, said("<think>hm</think>425"), MORE)), "a template may drop it; we do not"
    stripped = agent.asks(ASKED, said("425"), MORE)
    assert not agent.keeps(stripped) and stripped.began == LEFT_OUT
    assert stripped.context_ids.tolist() == agent.as_text(ASKED, said("425"), MORE)


def test_a_subagent_has_its_own_history_and_the_main_one_goes_on() -> None:
    agent = Agent()
    agent.gets(Asked([SYSTEM, ASKED]), "ask a helper")
    helper = [{"role": "system", "content": "You are a helper."}, ASKED]
    assert agent.asks(*helper).began == ANOTHER
    agent.gets(Asked(helper), "425")
    assert agent.keeps(agent.asks(*helper, said("425"), MORE), 1)
    assert agent.keeps(agent.asks(SYSTEM, ASKED, said("ask a helper"), MORE), 0)


def test_subagents_that_branch_in_the_middle_share_what_stands_before() -> None:
    agent = Agent()
    agent.gets(Asked([ASKED]), "425")
    left, right = ({"role": "user", "content": text} for text in ("left?", "right?"))
    for branch in (left, right):
        placed = agent.asks(ASKED, said("425"), branch)
        assert agent.keeps(placed, 0) and placed.began == ""
    agent.gets(Asked([ASKED, said("425"), left]), "l")
    agent.gets(Asked([ASKED, said("425"), right]), "r")
    assert agent.keeps(agent.asks(ASKED, said("425"), left, said("l"), MORE), 1)
    assert agent.keeps(agent.asks(ASKED, said("425"), right, said("r"), MORE), 2)


def test_other_tools_are_another_context() -> None:
    agent = Agent()
    agent.gets(Asked([ASKED], tools=TOOLS), "425")
    placed = agent.asks(ASKED, said("425"), MORE)
    assert not agent.keeps(placed) and placed.began == CHANGED_TOOLS


def test_a_stop_string_that_was_cut_off_stays_in_the_tokens() -> None:
    agent, asked = Agent(), Asked([ASKED], stop=("bc",))
    agent.gets(asked, "xabcd", said("xa"), ended=False, text="xa", stop="bc")
    for text in ("xa", "xabc"):
        placed = agent.asks(ASKED, said(text), MORE)
        assert agent.keeps(placed) and placed.began == "", "as it was returned, or with the stop string put back"
    assert not agent.keeps(agent.asks(ASKED, said("x"), MORE))


def test_an_answer_goes_on_where_the_agent_sends_it_back_as_the_last_message() -> None:
    agent = Agent()
    before = agent.gets(Asked([ASKED]), "the answer is", ended=False)
    assert agent.asks(ASKED, said("the answer is")).context_ids.tolist() == before.tolist()
    ended = Agent()
    before = ended.gets(Asked([ASKED]), "the answer is")
    assert ended.asks(ASKED, said("the answer is")).context_ids.tolist() == before[:-1].tolist()
    prefilled = ended.asks(ASKED, said("4"))
    assert ended.shown(prefilled).endswith("<|im_start|>assistant\n4")


def test_the_same_history_with_another_seed_has_the_same_context() -> None:
    agent = Agent()
    agent.gets(Asked([ASKED], seed=1), "425")
    agent.gets(Asked([ASKED], seed=2), "426")
    for place, text in ((0, "425"), (1, "426")):
        assert agent.keeps(agent.asks(ASKED, said(text), MORE), place)
    assert Asked([ASKED], seed=1).to_bytes() != Asked([ASKED], seed=2).to_bytes()
    assert Asked([ASKED], seed=1).to_bytes() == Asked([dict(reversed(ASKED.items()))], seed=1).to_bytes()


def test_a_text_goes_on_from_the_tokens_that_were_sampled() -> None:
    agent = Agent()
    before = agent.gets(Asked(prompt="once", calls="none"), np.array([32, 255, 254]), ended=False)
    text = "once" + QWEN.decode_plain(before[4:])
    assert agent.continues(text).context_ids.tolist() == before.tolist()
    more = agent.continues(f"{text} upon")
    assert agent.keeps(more) and QWEN.show(more.context_ids).endswith(" upon") and more.began == ""
    assert agent.continues("twice").began == ANOTHER
    longer = agent.gets(Asked(prompt=f"{text} upon", calls="none"), " a time")
    assert agent.continues(f"{text} upon a time there").context_ids[: len(longer)].tolist() == longer.tolist()


def test_a_text_goes_on_behind_a_stop_string_with_and_without_it() -> None:
    """The agent of ReAct cuts the answer at "Observation:", and writes its own."""
    agent = Agent()
    agent.gets(
        Asked(prompt="Q\n", calls="none", stop=("Obs:",)), "Act\nObs:", ended=False, text="Act\n", stop="Obs:"
    )  # fmt: skip
    own = agent.continues("Q\nAct\nObs: 42")
    assert agent.keeps(own) and QWEN.show(own.context_ids) == "Q\nAct\nObs: 42" and own.began == ""
    without = agent.continues("Q\nAct\nResult: 42")
    assert QWEN.show(without.context_ids) == "Q\nAct\nResult: 42" and without.began == CUT


def test_a_stop_string_that_ends_inside_a_token_of_a_text() -> None:
    """One token holds the end of the stop string and more: it is kept whole, or not at all."""
    tokenizer = byte_tokenizer(QWEN3, eos="<|im_end|>")
    tokenizer._tokenizer.add_tokens(["bcd"])
    agent = Agent(Tokenizer(tokenizer._tokenizer))
    token = len(agent.tokenizer) - 1
    ids = np.append(agent.tokenizer.encode("xa"), token)
    agent.gets(Asked(prompt="Q", calls="none", stop=("bc",)), ids, ended=False, text="xa", stop="bc")
    cut = agent.continues("Qxa!")
    assert agent.shown(cut) == "Qxa!" and cut.began == CUT and token not in cut.context_ids
    whole = agent.continues("Qxabcd!")
    assert agent.keeps(whole) and agent.shown(whole) == "Qxabcd!"


def test_tokens_as_a_prompt_are_the_context() -> None:
    agent = Agent()
    assert agent.history.place(Asked(prompt=[5, 6, 7], calls="none")).context_ids.tolist() == [5, 6, 7]


def test_messages_without_a_template_are_their_contents() -> None:
    agent = Agent(character_tokenizer(), plain=True)
    assert agent.shown(agent.asks(SYSTEM, ASKED)) == "Be brief.17*25?"
    agent.gets(Asked([ASKED]), "425")
    placed = agent.asks(ASKED, said("425"), MORE)
    assert agent.keeps(placed) and agent.shown(placed).endswith("<eos>Sure?")


def test_what_a_template_refuses_behind_an_answer_is_rendered_as_a_whole_or_refused() -> None:
    agent = Agent(PUBLISHED["mistral"])
    agent.gets(Asked([ASKED]), "425")
    with pytest.raises(Exception, match="roles must alternate"):
        agent.asks(ASKED, said("425"), MORE, MORE)


def test_agents_set_only_variables_that_the_template_reads() -> None:
    prompts = Prompts(PUBLISHED["chatml"], Style(ChatStyle()))
    wanted = {"enable_thinking": False, "other": 1, "messages": "x", "add_generation_prompt": False, "tools": "a"}
    assert prompts.variables(wanted) == {"enable_thinking": False}
    context = prompts.whole(Asked([ASKED], variables={"enable_thinking": False}))
    assert prompts.tokenizer.show(context).endswith("<think>\n\n</think>\n\n")


def test_contexts_are_kept_once() -> None:
    """The memory of a session grows with what is said, not with its square."""
    agent, messages = Agent(), [ASKED]
    for number in range(30):
        agent.gets(Asked(messages), f"answer {number}")
        messages = [*messages, said(f"answer {number}"), MORE]
    held = {id(past): past for pasts in agent.history._answered.values() for past in pasts}
    size = sum(len(past.context_ids) + len(past.reply) for past in held.values())
    assert size == len(agent.tokens[-1])
