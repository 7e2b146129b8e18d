"""Checks of what an environment returned, before it leaves the process: what is not in the form is its fault."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lpo_ray.agents.environment import Message, Step
from lpo_ray.agents.tools.calls import parse
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.values import verdict_of

MOST_MESSAGES = 1000
"""at once"""
LONGEST_DETAIL = 500
"""characters of a verdict's detail that are kept"""


class Refused(ValueError):
    """Error of an environment that returned what cannot be used: says what, and what was expected."""


def reply_of(content: str, shown: str, parser: str | None) -> Message:
    """Make the policy's reply: its text, or what stands before its tool calls, and these.

    ``shown``: the text with special tokens, in which some models write their calls.
    """
    if parser is None:
        return {"role": "assistant", "content": content}
    before, calls = parse(parser, shown)
    calls = _without_halves(calls)
    return {"role": "assistant", "content": before, "tool_calls": calls} if calls else {
        "role": "assistant", "content": content,
    }  # fmt: skip


def checked_step(found: object) -> dict[str, Any]:
    """Write a Step for the parent. Raises Refused."""
    if not isinstance(found, Step):
        raise Refused(f"step returned {_shown(found)}; expected a Step of lpo_ray.agents")
    messages = checked_messages(found.messages, "step") if found.messages else []
    if not messages and not found.done and found.history is None:
        raise Refused("step returned neither messages nor done=True; expected what the policy answers next")
    return {
        "messages": messages,
        "done": bool(found.done),
        "verdict": _verdict(found.verdict),
        "history": None if found.history is None else checked_messages(found.history, "step, as history,"),
    }


def checked_messages(found: object, where: str) -> list[Message]:
    """Return messages in the chat form. Raises Refused for anything else."""
    if isinstance(found, str | Mapping) or not isinstance(found, Sequence):
        raise Refused(f"{where} returned {_shown(found)} as messages; expected a list of {{'role', 'content'}}")
    if not found:
        raise Refused(f"{where} returned no messages; expected at least one")
    if len(found) > MOST_MESSAGES:
        raise Refused(f"{where} returned {len(found):,} messages at once; expected at most {MOST_MESSAGES:,}")
    return [_checked(message, where) for message in found]


def _checked(message: object, where: str) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise Refused(f"{where} returned the message {_shown(message)}; expected {{'role': 'user', 'content': 'text'}}")
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):  # parts, as of OpenAI's form
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else content
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise Refused(f"{where} returned a message whose content is {_shown(content)}; expected a text")
    try:
        text = json.dumps({**message, "content": content})
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(f"{where} returned a message that cannot be written as JSON: {error}") from error
    return _without_halves(json.loads(text)) if "\\ud" in text else json.loads(text)


def _without_halves(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Replace halves of surrogate pairs, which no text that is encoded can have."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_halves(item) for item in value]
    if isinstance(value, dict):
        return {_without_halves(key): _without_halves(item) for key, item in value.items()}
    return value


def _verdict(found: object) -> dict[str, Any] | None:
    if found is None:
        return None
    verdict = verdict_of(found)
    if verdict.lack is not None and not isinstance(found, Verdict):
        raise Refused(verdict.detail.replace("the verifier returned", "the verdict is"))
    detail = verdict.detail[:LONGEST_DETAIL].encode("utf-8", "replace").decode()
    return {"reward": verdict.reward, "detail": detail, "lack": verdict.lack}


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except BaseException:  # noqa: BLE001 - code from outside
        text = "what cannot be shown"
    return f"{text[:80]}{'...' if len(text) > 80 else ''} ({type(value).__name__})"
