"""Hosted environments as the rest of the system sees them: contexts, tokens, seeds, tools in the first context."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lpo_ray.agents.conversations import EnvironmentSettings, HostedEnvironments, row_of
from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.processes.launching import schemas_of
from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import ConfigError, Unscored
from lpo_ray.policy.tokenizer import ChatStyle, Tokenizer
from lpo_ray.records import ConversationId, Observation, Prompt, Turn
from lpo_ray.tasks.prompt_form import PromptForm, form_of
from lpo_ray.tasks.sources.source import PromptEncoder
from tests.support.chat_tokenizers import CHATML, QWEN3, byte_tokenizer

HERE = f"{Path(__file__).parents[1]}/support/playful_environments.py"
QWEN = byte_tokenizer(QWEN3, eos="<|im_end|>")
CALL = '<tool_call>{"name": "calculator", "arguments": {"expression": "17*25"}}</tool_call>'


def turn(tokenizer: Tokenizer, text: str) -> Turn:
    ids = tokenizer.encode(text)
    return Turn(ids, np.zeros(len(ids), np.float32), np.zeros(len(ids), np.int64), "stop")


async def played(
    tokenizer: Tokenizer, form: PromptForm, hosted: Hosted, prompt: str | list, *replies: str, **row: object
) -> tuple[list[str], list[Observation]]:
    """The contexts of a conversation as text, and what was observed."""
    encoder = PromptEncoder(tokenizer, "chat", 2000, form)
    environments = HostedEnvironments(EnvironmentSettings(hosted, 7), tokenizer, encoder)
    name, found = ConversationId("p", 0, 1), []
    asked = Prompt("p", encoder.encode(prompt), "425", "exact", {"prompt": prompt, **row})
    try:
        context = await environments.open(name, asked)
        contexts = [context]
        for reply in replies:
            said = turn(tokenizer, reply)
            observation = await environments.reply(name, said)
            found.append(observation)
            if observation.appended_ids is not None:
                contexts.append(np.concatenate([contexts[-1], said.token_ids, observation.appended_ids]))
            elif observation.context_ids is not None:
                contexts.append(observation.context_ids)
        return [tokenizer.show(each) for each in contexts], found
    finally:
        await environments.end(name)
        await environments.close()


async def test_tools_are_in_the_first_context_and_their_results_in_the_next() -> None:
    form = form_of(TaskConfig(tools=["calculator"], date="2026-11-30"))
    hosted = Hosted(tools=("calculator",), processes=1)
    contexts, found = await played(QWEN, form, hosted, "17*25?", f"{CALL}<|im_end|>", "425<|im_end|>")
    assert '"name": "calculator"' in contexts[0] and contexts[0].endswith("17*25?<|im_end|>\n<|im_start|>assistant\n")
    added = "\n<|im_start|>user\n<tool_response>\n425\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert contexts[1] == f"{contexts[0]}{CALL}<|im_end|>{added}"
    assert [each.author for each in found] == ["tool", ""] and found[1].done and found[1].verdict is None
    assert found[0].seconds > 0


async def test_an_environment_gets_the_row_a_seed_and_the_form_of_prompts() -> None:
    form = PromptForm(ChatStyle(), "Be brief.", "Q: ", " A:")
    tokenizer = byte_tokenizer(CHATML, eos="<|im_end|>")
    hosted = Hosted(environment=f"{HERE}:Telling", processes=1)
    contexts, found = await played(tokenizer, form, hosted, "ignored", "hm<|im_end|>", level=3)
    assert contexts[0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ: answer 425 level 3 A:")
    again, _ = await played(tokenizer, form, hosted, "ignored", "hm<|im_end|>", level=3)
    assert contexts == again and "seed" in contexts[1]
    assert found[0].verdict is not None and found[0].verdict.reward == 0.5 and not found[0].done


async def test_messages_go_through_the_template_whatever_the_task_says() -> None:
    encoder = PromptEncoder(QWEN, "plain", 2000)
    hosted = Hosted(environment=f"{HERE}:Default", processes=1)
    environments = HostedEnvironments(EnvironmentSettings(hosted), QWEN, encoder)
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    try:
        for number, prompt in enumerate((messages, "plain text")):
            name = ConversationId("p", 0, number)
            ids = encoder.encode(prompt)
            context = await environments.open(name, Prompt("p", ids, "", "exact", {"prompt": prompt}))
            assert context.tolist() == ids.tolist()
            found = await environments.reply(name, turn(QWEN, "x<|im_end|>"))
            assert found.appended_ids is not None
            wanted = "\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n" if number == 0 else "more"
            assert QWEN.show(found.appended_ids) == wanted
    finally:
        await environments.close()


async def test_calls_are_read_as_each_prompt_is_rendered_whatever_the_task_says() -> None:
    """Messages go through the template also with task.template=plain, and it says how calls are written; a text has
    them between brackets.
    """
    encoder = PromptEncoder(QWEN, "plain", 2000)
    environments = HostedEnvironments(EnvironmentSettings(Hosted(tools=("calculator",), processes=1)), QWEN, encoder)
    try:
        asked: dict[str, tuple[str | list, str]] = {
            "messages": ([{"role": "user", "content": "17*25?"}], f"{CALL}<|im_end|>"),
            "text": ("17*25?", "[17*25]"),
        }
        for number, (prompt, reply) in enumerate(asked.values()):
            name = ConversationId("p", 0, number)
            await environments.open(name, Prompt("p", encoder.encode(prompt), "", "exact", {"prompt": prompt}))
            found = await environments.reply(name, turn(QWEN, reply))
            assert found.appended_ids is not None and "425" in QWEN.show(found.appended_ids)
    finally:
        await environments.close()


async def test_a_history_that_is_summed_up_begins_a_context_and_a_template_that_refuses_is_said() -> None:
    tokenizer, form = byte_tokenizer(CHATML, eos="<|im_end|>"), PromptForm()
    hosted = Hosted(environment=f"{HERE}:Summing", processes=1)
    contexts, found = await played(tokenizer, form, hosted, "a long question", "hm<|im_end|>", "ok<|im_end|>")
    assert found[0].began == "the environment rewrote the history"
    assert (
        contexts[1]
        == "<|im_start|>user\nin short<|im_end|>\n<|im_start|>user\ngo on<|im_end|>\n<|im_start|>assistant\n"
    )
    assert contexts[2].startswith(f"{contexts[1]}ok<|im_end|>\n")
    refusing = "{% for m in messages %}{% if m['role'] == 'user' and loop.index > 1 %}{{ raise_exception('no more') }}"
    strict = byte_tokenizer(f"{refusing}{{% endif %}}{{{{ m['content'] }}}}{{% endfor %}}")
    with pytest.raises(Unscored, match="no more"):
        await played(strict, form, Hosted(environment=f"{HERE}:Default", processes=1), "q", "x")


def test_the_row_has_the_answer_in_its_own_type() -> None:
    prompt = Prompt("p", np.array([1]), "[1, 2]", "exact", {"prompt": "q", "level": 1}, [1, 2])
    assert row_of(prompt) == {"prompt": "q", "level": 1, "answer": [1, 2]}


def test_what_cannot_be_loaded_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"task.tools=\['nosuch'\] cannot be loaded: UnknownName"):
        schemas_of(None, ("nosuch",))
    with pytest.raises(ConfigError, match=r"expected a subclass of .*ToolEnvironment, or no tools"):
        schemas_of(f"{HERE}:Default", ("calculator",))
    assert schemas_of(f"{HERE}:Default", ()) == ()
    assert [each["function"]["name"] for each in schemas_of("tools", ("calculator", "python"))] == [
        "calculator",
        "python",
    ]
