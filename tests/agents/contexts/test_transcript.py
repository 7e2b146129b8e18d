"""Conversations in tokens: whatever was sampled stays as it is, and the template's text stands behind it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.agents.contexts.chat import Chat
from lpo_ray.agents.contexts.transcript import Transcript
from lpo_ray.errors import DataError
from lpo_ray.policy.tokenizer import WORD_JOINER, ChatStyle, Tokenizer
from lpo_ray.tasks.base_policy import character_tokenizer
from lpo_ray.tasks.prompt_form import PromptForm
from lpo_ray.tasks.sources.source import PromptEncoder
from tests.support.chat_tokenizers import (
    CHATML,
    DATED,
    LLAMA_2,
    MISTRAL,
    PUBLISHED,
    byte_tokenizer,
    spaced_tokenizer,
)

TOKENIZERS = {**PUBLISHED, "dated": byte_tokenizer(DATED)}
ASKED = [{"role": "user", "content": "17*25?"}]
USER = [{"role": "user", "content": "Sure?"}]
TOOL = [{"role": "tool", "content": "425"}]
CALL = [
    {"type": "function", "id": "call00000", "function": {"name": "calculator", "arguments": {"expression": "17*25"}}}
]


def begun(tokenizer: Tokenizer, messages: list[dict] = ASKED, template: str = "chat") -> Transcript:
    encoder = PromptEncoder(tokenizer, template, 1000, PromptForm(ChatStyle()))
    return Transcript.of(Chat(tokenizer, encoder), messages, is_plain=template == "plain")


def said(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return tokenizer.encode(text)


@given(st.data())
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_next_context_begins_with_this_one_and_what_was_sampled(name: str, data: st.DataObject) -> None:
    """Any tokens: broken UTF-8, tokens that no text is encoded to, special tokens anywhere."""
    tokenizer = TOKENIZERS[name]
    transcript = begun(tokenizer)
    for _ in range(data.draw(st.integers(1, 3))):
        ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=12))
        if data.draw(st.booleans()):
            ids.append(tokenizer.eos_token_id)
        before, reply = transcript.token_ids, np.array(ids)
        content = data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
        appended = transcript.append(reply, [], [{"role": "user", "content": content}])
        assert transcript.token_ids.tolist() == [*before, *reply, *appended.token_ids]
        assert len(appended.token_ids) and appended.dropped >= 0


@pytest.mark.parametrize(
    ("name", "reply", "messages", "calls", "expected"),
    [
        ("chatml", "425<|im_end|>", USER, [], "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"),
        ("chatml", "42", USER, [], "<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"),
        ("chatml", "425<|endoftext|>", USER, [], "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"),
        ("qwen3", "425<|im_end|>", TOOL, CALL,
         "\n<|im_start|>user\n<tool_response>\n425\n</tool_response><|im_end|>\n<|im_start|>assistant\n"),
        ("llama 3", "425<|eom_id|>", TOOL, CALL,
         "<|start_header_id|>ipython<|end_header_id|>\n\n425<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("llama 2", "425</s>", USER, [], "[INST] Sure? [/INST]"),
        ("llama 2", "42", USER, [], " </s>[INST] Sure? [/INST]"),
        ("mistral", "[TOOL_CALLS]x</s>", TOOL, CALL, "[TOOL_RESULTS] 425[/TOOL_RESULTS]"),
        ("mistral", "[TOOL_CALLS]x", TOOL, CALL, "</s>[TOOL_RESULTS] 425[/TOOL_RESULTS]"),
        ("dated", "425<|endoftext|>", USER, [], "\nuser: Sure?\n"),
    ],
)  # fmt: skip
def test_what_the_template_puts_behind_an_answer_is_appended(
    name: str, reply: str, messages: list, calls: list, expected: str
) -> None:
    """The turn's end is there once: the reply's own, whichever token that is, or the template's."""
    tokenizer = TOKENIZERS[name]
    appended = begun(tokenizer).append(said(tokenizer, reply), calls, messages)
    assert tokenizer.show(appended.token_ids) == expected


@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama 3", "mistral"])
def test_a_conversation_of_canonical_tokens_is_what_the_template_makes_of_it(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    transcript, end = begun(tokenizer), tokenizer.show(np.array([tokenizer.eos_token_id]))
    space = " " if name == "mistral" else ""
    for answer in ("One.", "Two."):
        appended = transcript.append(said(tokenizer, f"{space}{answer}{end}"), [], USER)
        assert appended.dropped == 0
    messages = [
        *ASKED,
        {"role": "assistant", "content": "One."},
        *USER,
        {"role": "assistant", "content": "Two."},
        *USER,
    ]
    assert tokenizer.show(transcript.token_ids) == tokenizer.render(messages)


@pytest.mark.parametrize("takes_space", [False, True])
@pytest.mark.parametrize("spaces", ["first", "always", "never", "legacy"])
@pytest.mark.parametrize(("template", "eos"), [(CHATML, "<|im_end|>"), (LLAMA_2, "</s>"), (MISTRAL, "</s>")])
def test_what_stands_behind_a_turn_has_the_tokens_that_it_has_in_the_whole(
    template: str, eos: str, spaces: str, takes_space: bool
) -> None:
    """Whatever a tokenizer puts before a text, or a special token takes from what is behind it."""
    tokenizer = spaced_tokenizer(template, spaces, eos=eos, takes_space=takes_space)
    messages = [
        *ASKED,
        *(each for answer in ("One.", "Two.") for each in ({"role": "assistant", "content": answer}, *USER)),
    ]
    whole, transcript = tokenizer.encode(tokenizer.render(messages)), begun(tokenizer)
    for _ in range(2):
        start = len(transcript.token_ids)
        assert transcript.token_ids.tolist() == whole[:start].tolist()
        end = start + whole[start:].tolist().index(tokenizer.eos_token_id) + 1
        appended = transcript.append(whole[start:end], [], USER)
        assert appended.dropped == 0
    assert transcript.token_ids.tolist() == whole.tolist()


@pytest.mark.parametrize("spaces", ["first", "always", "never", "legacy"])
def test_a_text_behind_a_text_begins_with_nothing_else(spaces: str) -> None:
    tokenizer = spaced_tokenizer(CHATML, spaces, eos="</s>")
    for last in ("2", "</s>"):
        transcript = begun(tokenizer, [{"role": "user", "content": "1+1="}], "plain")
        appended = transcript.append(said(tokenizer, last)[-1:], [], [{"role": "user", "content": "\nmore"}])
        space = "▁" if last == "</s>" and spaces in ("always", "legacy") else ""
        names = tokenizer._tokenizer.convert_ids_to_tokens(appended.token_ids.tolist())
        assert "".join(names) == f"{space}\nmore"


def test_thinking_that_a_template_would_leave_out_stays_and_is_counted() -> None:
    tokenizer = TOKENIZERS["qwen3"]
    transcript, thought = begun(tokenizer), "<think>\nhm, 17*25\n</think>\n\n"
    after_tool = transcript.append(said(tokenizer, f"{thought}calls<|im_end|>"), CALL, TOOL)
    assert after_tool.dropped == 0  # the question is still the user's last
    after_user = transcript.append(said(tokenizer, "425<|im_end|>"), [], USER)
    assert after_user.dropped == len(tokenizer.encode(thought))
    assert thought in tokenizer.show(transcript.token_ids)


def test_several_mistral_turns_with_tools_go_on() -> None:
    tokenizer = TOKENIZERS["mistral"]
    transcript = begun(tokenizer)
    for _ in range(3):
        transcript.append(said(tokenizer, "[TOOL_CALLS]x</s>"), CALL, TOOL)
    transcript.append(said(tokenizer, " 425</s>"), [], USER)
    shown = tokenizer.show(transcript.token_ids)
    assert shown.count("[TOOL_RESULTS] 425[/TOOL_RESULTS]") == 3 and shown.endswith("425</s>[INST] Sure?[/INST]")


def test_a_message_with_the_mark_in_it_does_not_mislead() -> None:
    tokenizer = TOKENIZERS["chatml"]
    transcript = begun(tokenizer, [{"role": "user", "content": "LPOANSWERLPO LPOANSWERLPOX"}])
    appended = transcript.append(said(tokenizer, "no<|im_end|>"), [], [{"role": "user", "content": "LPOANSWERLPOXXX"}])
    shown = tokenizer.show(appended.token_ids)
    assert shown == "\n<|im_start|>user\nLPOANSWERLPOXXX<|im_end|>\n<|im_start|>assistant\n"


@given(st.data())
@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_said_behind_an_answer_has_no_special_tokens(name: str, data: st.DataObject) -> None:
    """A tool that repeats the policy's words ends no turn and begins none, whatever stands around the tokens."""
    tokenizer = TOKENIZERS[name]
    special = [tokenizer.show(np.array([number])) for number in range(len(tokenizer)) if tokenizer.is_special(number)]
    text = "".join(data.draw(st.lists(st.sampled_from([*special, "<", "|", ">", "a", " "]), min_size=1, max_size=8)))
    messages = [{"role": "user", "content": text}]

    def specials(content: str) -> list[int]:
        appended = begun(tokenizer).append(said(tokenizer, "no"), [], [{**messages[0], "content": content}])
        return [number for number in appended.token_ids.tolist() if tokenizer.is_special(number)]

    assert specials(text) == specials("said")
    assert tokenizer.as_said(text).replace(WORD_JOINER, "") == text
    if not any(name in text for name in special):
        assert tokenizer.as_said(text) == text


def test_a_template_that_shows_no_answer_or_refuses_a_role_says_so() -> None:
    silent = byte_tokenizer(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match="shows an assistant's answer 0 times"):
        begun(silent).append(said(silent, "x"), [], USER)
    with pytest.raises(DataError, match="roles must alternate"):
        begun(TOKENIZERS["mistral"]).append(said(TOKENIZERS["mistral"], "x</s>"), [], [*USER, *USER])


SILENT = "{% if m['role'] == 'assistant' and not m['content'] | trim %}{{ raise_exception('nothing said') }}{% endif %}"


@pytest.mark.parametrize("reply", ["<|im_end|>", " \n<|im_end|>", "<bos><|im_start|><|im_end|>", "\n"])
def test_a_reply_of_nothing_goes_on_also_where_the_template_refuses_one(reply: str) -> None:
    """The policy may say nothing: that is scored, and never a reason for no verdict."""
    strict = byte_tokenizer(
        CHATML.replace("{{ '<|im_start|>' + m", f"{SILENT}{{{{ '<|im_start|>' + m", 1), eos="<|im_end|>"
    )
    with pytest.raises(DataError, match="nothing said"):
        strict.render([*ASKED, {"role": "assistant", "content": ""}, *USER])
    transcript = begun(strict)
    for _ in range(3):
        appended = transcript.append(said(strict, reply), [], USER)
        end = "" if reply.endswith(">") else "<|im_end|>"
        assert strict.show(appended.token_ids) == f"{end}\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"


def test_messages_of_a_character_model_are_appended_verbatim() -> None:
    tokenizer = character_tokenizer()
    transcript = begun(tokenizer, [{"role": "user", "content": "3,5,7=22:"}], "plain")
    reply = np.append(tokenizer.encode("3*5+8"), tokenizer.eos_token_id)
    appended = transcript.append(reply, [], [{"role": "user", "content": "=23\n"}])
    assert tokenizer.show(transcript.token_ids) == "3,5,7=22:3*5+8<eos>=23\n"
    assert (tokenizer.show(appended.token_ids), appended.dropped) == ("=23\n", 0)


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_history_that_was_rewritten_is_a_new_context(template: str) -> None:
    tokenizer = TOKENIZERS["chatml"]
    transcript = begun(tokenizer, ASKED, template)
    transcript.append(said(tokenizer, "a long story<|im_end|>"), [], USER)
    context = transcript.rewrite([{"role": "user", "content": "In short: 425. "}, *USER])
    wanted = tokenizer.render([{"role": "user", "content": "In short: 425. "}, *USER])
    assert tokenizer.show(context) == (wanted if template == "chat" else "In short: 425. Sure?")
    appended = transcript.append(said(tokenizer, "yes<|im_end|>"), [], USER)
    assert transcript.token_ids[: len(context)].tolist() == context.tolist() and appended.dropped == 0


TOLD = "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
WRITTEN = {
    "hermes": ("<tool_call>\n{{ c['function'] | tojson }}\n</tool_call>", "hermes", ""),
    "llama": ('{"name": "{{ c[\'function\'][\'name\'] }}", "parameters": {{ c["function"]["arguments"] | tojson }}}',
              "llama3_json", ""),
    "pythonic": ("[{{ c['function']['name'] }}({% for k, v in c['function']['arguments'].items() %}"
                 "{{ k }}={{ v | tojson }}{% endfor %})]", "pythonic", ""),
    "mistral": ("[TOOL_CALLS]{{ c['function']['name'] }}{{ c['function']['arguments'] | tojson }}", "mistral", ""),
    "tags": ("<tool_call><function={{ c['function']['name'] }}><parameter=word>sun</parameter></function></tool_call>",
             "hermes", "template writes calls as '<tool_call><function=look_up>.*, which no parser of ours reads"),
    "nothing": ("", "hermes", ""),
}  # fmt: skip


@pytest.mark.parametrize("form", WRITTEN)
def test_the_parser_is_the_one_that_reads_what_the_template_writes(form: str) -> None:
    """Whatever else the template's text has in it."""
    written, expected, trouble = WRITTEN[form]
    calls = f"{{% for c in m['tool_calls'] or [] %}}{written}{{% endfor %}}"
    template = TOLD + CHATML.replace(
        "m['content'] + '<|im_end|>\n' }}", f"m['content'] }}}}{calls}{{{{ '<|im_end|>\n' }}}}"
    )
    tokenizer = byte_tokenizer(template, eos="<|im_end|>")
    style = ChatStyle(tools=[{"type": "function", "function": {"name": "look_up"}}])
    found, said_of_it = Chat(tokenizer, PromptEncoder(tokenizer, "chat", 1000, PromptForm(style))).parser()
    assert found == expected
    assert re.search(trouble, said_of_it) if trouble else said_of_it == ""


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_template_that_shows_no_tools_says_so(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    style = ChatStyle(tools=[{"type": "function", "function": {"name": "look_up"}}])
    parser, trouble = Chat(tokenizer, PromptEncoder(tokenizer, "chat", 1000, PromptForm(style))).parser()
    assert parser == {"llama 3": "llama3_json", "mistral": "mistral"}.get(name, "hermes")
    assert trouble == ("" if name == "qwen3" else "the chat template does not tell the model of its tools")
