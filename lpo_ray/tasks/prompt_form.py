"""Form of every prompt, from the configuration: texts before and after it, a system prompt, a chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lpo_ray.agents.processes.launching import schemas_of
from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import ConfigError, DataError
from lpo_ray.policy.tokenizer import DEFAULT_STYLE, ChatStyle, Messages

OF_TRANSFORMERS = frozenset({
    "messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs", "strftime_now",
})  # fmt: skip
"""names that are no variables of a template"""


@dataclass(frozen=True, slots=True)
class PromptForm:
    """Form of prompts: what each gets beside its own text."""

    style: ChatStyle = DEFAULT_STYLE
    system_prompt: str | None = None
    """of conversations without one"""
    prefix: str = ""
    """before the text of the prompt, or of the user's last message; suffix: after it"""
    suffix: str = ""

    def text(self, prompt: str) -> str:
        """Put prefix and suffix around a text."""
        return f"{self.prefix}{prompt}{self.suffix}"

    def conversation(self, messages: Messages) -> Messages:
        """Put the system prompt before the messages, and prefix and suffix around the user's last one."""
        found: list[Mapping[str, Any]] = list(messages)
        asked = [place for place, message in enumerate(found) if message["role"] == "user"]
        if asked and (self.prefix or self.suffix):
            last = found[asked[-1]]
            found[asked[-1]] = {**last, "content": self.text(last["content"])}
        if self.system_prompt is not None and found[0]["role"] not in ("system", "developer"):
            found.insert(0, {"role": "system", "content": self.system_prompt})
        return found


def form_of(task: TaskConfig) -> PromptForm:
    """Make the form that the section task describes. Raises ConfigError."""
    try:
        date = datetime.strptime(task.date, "%Y-%m-%d") if task.date else datetime.now()
    except ValueError as error:
        raise ConfigError(f"task.date is {task.date!r}; expected a date such as 2024-07-26") from error
    if taken := sorted(OF_TRANSFORMERS & set(task.chat_template_kwargs)):
        raise ConfigError(
            f"task.chat_template_kwargs has {', '.join(taken)}, which the prompts' own rendering sets; expected "
            "variables of the chat template, such as {enable_thinking: false}"
        )
    tools = schemas_of(task.environment, tuple(task.tools)) if task.environment or task.tools else ()
    style = ChatStyle(_template(task.chat_template), task.chat_template_kwargs, date, tools)
    return PromptForm(style, task.system_prompt, task.prompt_prefix, task.prompt_suffix)


def no_system_prompt(prompt: str) -> DataError:
    """Make the error for a text that stays as it is, where a system prompt is set."""
    return DataError(
        f"task.system_prompt is set, but the prompt {prompt[:40]!r} is text and task.template=plain; expected "
        "task.template=chat, or task.prompt_prefix in its place"
    )


def _template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"task.chat_template is {path!r}, which cannot be read: {error}; expected a Jinja file"
        ) from error
