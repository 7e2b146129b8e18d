"""Requests of agents, before a server sees them: what is read of a body, what of it would change what is sampled.

The log-ratio of a response is of the distribution that it was sampled from. So a request that asks for another one is
refused, or answered as the run samples where ``overrides`` says so. Unknown fields are ignored, as servers do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from lpo_ray.agents.endpoint.api_errors import ApiError, Dialect
from lpo_ray.records import Sampling

DEEPEST = 64
"""nesting of a body"""
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Api:
    """One of the APIs, by what is read of its requests."""

    path: str
    fields: frozenset[str]
    """that are handed on"""
    limit_fields: tuple[str, ...] = ("max_tokens",)
    """that say how long an answer may be"""
    dialect: Dialect = "openai"
    needs_model: bool = False


_SHARED = ("tools", "tool_choice", "parallel_tool_calls", "stream", "stream_options", "seed", "stop")
CHAT = Api(
    "/v1/chat/completions",
    frozenset((*_SHARED, "messages", "max_tokens", "max_completion_tokens", "logprobs", "chat_template_kwargs",
               "reasoning_effort", "return_token_ids")),
    ("max_tokens", "max_completion_tokens"),
)  # fmt: skip
COMPLETIONS = Api(
    "/v1/completions",
    frozenset(("prompt", "max_tokens", "logprobs", "stream", "stream_options", "seed", "stop", "return_token_ids")),
)
RESPONSES = Api(
    "/v1/responses",
    frozenset((*_SHARED, "input", "instructions", "max_output_tokens", "metadata", "reasoning", "include",
               "chat_template_kwargs")),
    ("max_output_tokens",),
)  # fmt: skip
MESSAGES = Api(
    "/v1/messages",
    frozenset(("messages", "system", "max_tokens", "tools", "tool_choice", "stop_sequences", "stream",
               "chat_template_kwargs")),
    dialect="anthropic", needs_model=True,
)  # fmt: skip
COUNT = Api(
    "/v1/messages/count_tokens", frozenset(("messages", "system", "tools", "tool_choice")),
    dialect="anthropic", needs_model=True,
)  # fmt: skip
APIS = {api.path: api for api in (CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT)}


class Screened(NamedTuple):
    """A request as a server may see it."""

    body: Body
    overridden: tuple[str, ...]
    """fields that the run decides in place of the agent"""


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings of every answer, by the run that is served."""

    sampling: Sampling
    most_tokens: int
    """of context and answer together"""
    model: str = "policy"
    overrides: bool = False
    """answer as the run samples where a request asks for another distribution"""


def read(raw: bytes) -> Body:
    """Read a body. Raises ApiError for what is no JSON object, or one that is nested too deep."""
    try:
        value = json.loads(raw, parse_constant=_no_number, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be encoded
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"the body is not valid JSON: {reason[:200]}") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"the body is a JSON {type(value).__name__}; expected an object")
    if _depth(value) > DEEPEST:
        raise ApiError(400, f"the body is nested more than {DEEPEST} deep")
    return value


def screen(api: Api, body: Body, rules: Rules) -> Screened:
    """Keep what a server may see of a body. Raises ApiError for what would change what is sampled."""
    overridden = []
    for name, (is_run, run) in _decided(rules.sampling).items():
        if body.get(name) is None or is_run(body[name]):
            continue
        if not rules.overrides or run is None:
            raise _refused(name, body[name], run, rules)
        overridden.append(name)
    logprobs = body.get("logprobs")
    if api is COMPLETIONS and type(logprobs) is int and logprobs > 1:
        raise _refused("logprobs", logprobs, None, rules)
    kept = {name: value for name, value in body.items() if name in api.fields and value is not None}
    if _forces_a_call(kept.get("tool_choice")):
        if not rules.overrides:
            raise _refused("tool_choice", kept["tool_choice"], "auto", rules)
        kept["tool_choice"] = {"type": "auto"} if api.dialect == "anthropic" else "auto"
        overridden.append("tool_choice")
    for name in api.limit_fields:
        if type(kept.get(name)) is int:
            kept[name] = min(kept[name], rules.most_tokens)
    if "include" in kept:
        wanted = kept["include"] if isinstance(kept["include"], list) else []
        kept["include"] = [each for each in wanted if each == "message.output_text.logprobs"]
    kept["model"] = rules.model
    if api is RESPONSES:
        kept["store"] = False
    return Screened(kept, tuple(overridden))


Decided = tuple[Callable[[Any], bool], str | None]
"""whether a value is the run's; what the run's is, None: it cannot be put in the place of another"""


@lru_cache(maxsize=8)
def _decided(sampling: Sampling) -> dict[str, Decided]:
    """List what the run decides, by the field of a request."""
    return {
        **{name: (_number(value), f"{value:g} (sampling.{name})") for name, value in (
            ("temperature", sampling.temperature), ("top_p", sampling.top_p), ("min_p", sampling.min_p))},
        "top_k": (lambda value: _number(sampling.top_k)(max(value, 0) if type(value) is int else value),
                  f"{sampling.top_k} (sampling.top_k)"),
        **{name: (_number(value), f"{value:g}") for name, value in (
            ("presence_penalty", 0), ("frequency_penalty", 0), ("repetition_penalty", 1), ("length_penalty", 1),
            ("min_tokens", 0))},
        **{name: (_is_empty, "none") for name in (
            "logit_bias", "bad_words", "allowed_token_ids", "stop_token_ids", "structured_outputs", "guided_json",
            "guided_regex", "guided_choice", "guided_grammar", "ignore_eos", "use_beam_search", "logits_processors",
            "thinking_token_budget", "watermarking", "repetition_detection", "vllm_xargs")},
        "response_format": (_is_text, "text"),
        "text": (lambda value: not isinstance(value, dict) or _is_text(value.get("format")), "text"),
        "output_config": (lambda value: not isinstance(value, dict) or not value.get("format"), "text"),
        # these cannot be put aside: the agent would not get what it counts on
        **{name: (_number(1), None) for name in ("n", "best_of")},
        **{name: (_is_empty, None) for name in (
            "echo", "suffix", "top_logprobs", "prompt_logprobs", "logprob_token_ids", "background", "functions",
            "function_call", "previous_response_id", "conversation", "audio", "web_search_options", "documents",
            "chat_template", "prompt_embeds", "continue_final_message", "include_stop_str_in_output")},
        "add_generation_prompt": (bool, None),
        "modalities": (lambda value: value == ["text"], None),
    }  # fmt: skip


def _number(run: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and type(value) is not bool and value == run


def _is_empty(value: object) -> bool:
    return not value


def _is_text(value: object) -> bool:
    return value is None or (isinstance(value, Mapping) and value.get("type") == "text")


def _forces_a_call(choice: object) -> bool:
    if isinstance(choice, Mapping):
        return choice.get("type") not in ("auto", "none")
    return choice not in (None, "auto", "none")


def _refused(name: str, value: object, run: str | None, rules: Rules) -> ApiError:
    shown = repr(value)[:80]
    if run is None:
        return ApiError(400, f"{name}={shown} is not available here; leave it out", "unsupported_value", name)
    reason = (
        f"{name}={shown} would change what is sampled, and this run samples with {name}={run}; leave it out, or set "
        "agent.overrides=true so that the run's value takes its place"
    )
    return ApiError(400, reason, "unsupported_value", name)


def _depth(value: object) -> int:
    """Measure how deep a value is nested, up to one more than DEEPEST."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        inner: list[object] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        level = [each for each in inner if isinstance(each, dict | list)]
        depth += 1
    return depth


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number
