"""What the configuration puts around every prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import ConfigError, DataError
from lpo_ray.policy.tokenizer import ChatStyle, Messages
from lpo_ray.tasks.prompt_form import PromptForm, form_of
from lpo_ray.tasks.sources.source import PromptEncoder
from tests.support.chat_tokenizers import CHATML, LLAMA_2, byte_tokenizer

AROUND = PromptForm(prefix="Question: ", suffix="\nAnswer:")
SYSTEM = PromptForm(system_prompt="Be brief.")


def shown(prompt: str | Messages, form: PromptForm, template: str = "chat", **tokenizer: tuple[str, ...]) -> str:
    made = byte_tokenizer(CHATML, **tokenizer)
    encoder = PromptEncoder(made, template, 100, form)
    (together,) = encoder.encode_many([encoder.render(prompt)])
    alone = encoder.encode(prompt)
    assert alone.tolist() == together.tolist()
    return made.show(alone)


def turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


@pytest.mark.parametrize(
    ("prompt", "form", "template", "expected"),
    [
        ("2+3?", AROUND, "plain", "Question: 2+3?\nAnswer:"),
        ("2+3?", AROUND, "chat", turn("user", "Question: 2+3?\nAnswer:") + "<|im_start|>assistant\n"),
        ("2+3?", SYSTEM, "chat", turn("system", "Be brief.") + turn("user", "2+3?") + "<|im_start|>assistant\n"),
        (
            [{"role": "system", "content": "Its own."}, {"role": "user", "content": "2+3?"}],
            SYSTEM,
            "plain",
            turn("system", "Its own.") + turn("user", "2+3?") + "<|im_start|>assistant\n",
        ),
        (
            [
                {"role": "user", "content": "1?"},
                {"role": "assistant", "content": "1"},
                {"role": "user", "content": "2?"},
                {"role": "assistant", "content": "It "},
            ],
            AROUND,
            "chat",
            turn("user", "1?")
            + turn("assistant", "1")
            + turn("user", "Question: 2?\nAnswer:")
            + "<|im_start|>assistant\nIt ",
        ),
    ],
)
def test_texts_stand_around_prompts(prompt: str | Messages, form: PromptForm, template: str, expected: str) -> None:
    assert shown(prompt, form, template) == expected


def test_a_plain_prompt_begins_as_the_tokenizer_begins_and_a_conversation_as_its_template() -> None:
    assert shown("2+3=", PromptForm(), "plain", begin=("<bos>",), end=("</s>",)) == "<bos>2+3="
    assert shown("<bos>2+3=", PromptForm(), "plain", begin=("<bos>",)) == "<bos>2+3="
    assert shown("2+3=", PromptForm(), "plain") == "2+3="
    assert shown("2+3=", PromptForm(), "chat", begin=("<bos>",)).startswith("<|im_start|>user")
    llama = byte_tokenizer(LLAMA_2, begin=("<bos>",))
    assert llama.show(PromptEncoder(llama, "chat", 100).encode("2+3=")) == "<bos>[INST] 2+3= [/INST]"


def test_a_system_prompt_needs_a_conversation() -> None:
    with pytest.raises(DataError, match=r"task\.system_prompt is set, but the prompt '2\+3=' is text"):
        shown("2+3=", SYSTEM, "plain")


def test_variables_that_the_template_does_not_read_are_refused() -> None:
    with pytest.raises(DataError, match="has enable_thinkin, which the chat template does not read"):
        shown("2+3=", PromptForm(ChatStyle(variables={"enable_thinkin": False})))


def test_the_end_of_the_turn_counts_where_a_template_is_used() -> None:
    tokenizer = byte_tokenizer(CHATML)
    encoder = PromptEncoder(tokenizer, "plain", 100)
    encoder.encode("text")
    assert encoder.end_of_turn is None
    encoder.encode([{"role": "user", "content": "messages"}])
    assert encoder.end_of_turn == tokenizer.encode("<|im_end|>")[0]


def test_the_section_becomes_a_form(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[0]['content'] }}")
    task = TaskConfig(chat_template=str(tmp_path / "mine.jinja"), date="2026-11-30", prompt_suffix=" \\boxed{}")
    form = form_of(task)
    assert (form.style.template, form.style.date.day, form.suffix) == ("{{ messages[0]['content'] }}", 30, " \\boxed{}")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (TaskConfig(date="today"), "task.date is 'today'; expected a date such as"),
        (TaskConfig(date="2026-02-30"), "task.date is '2026-02-30'"),
        (TaskConfig(chat_template="/nowhere.jinja"), "task.chat_template is '/nowhere.jinja', which cannot be read"),
        (TaskConfig(chat_template_kwargs={"tokenize": True}), "task.chat_template_kwargs has tokenize"),
        (TaskConfig(chat_template_kwargs={"strftime_now": 1}), "task.chat_template_kwargs has strftime_now"),
    ],
)
def test_what_no_prompt_can_have_is_refused(task: TaskConfig, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected.replace(".", r"\.")):
        form_of(task)
