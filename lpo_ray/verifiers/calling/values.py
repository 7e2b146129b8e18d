"""Calls of a user's function, and what it returns as verdicts: numbers of any library, mappings, lists, None."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Set
from numbers import Real
from typing import Any

from lpo_ray.verdict import Verdict

LONGEST_DETAIL = 500
"""characters of what a function says beside its reward"""


def verdict_of(value: Any) -> Verdict:  # noqa: ANN401 - whatever a verifier returns
    """Turn a verdict, a number (also of numpy or of one element of torch), or None into a Verdict."""
    if isinstance(value, Verdict):
        return value
    if value is None:
        return Verdict.unscored("the verifier returned None")
    if isinstance(value, Mapping):
        if "score" not in value:
            return Verdict.unscored(f"the verifier returned a mapping of {', '.join(map(str, value))}, without score")
        verdict = verdict_of(value["score"])
        rest = {key: item for key, item in value.items() if key != "score"}
        if verdict.reward is None or not rest:
            return verdict
        return Verdict.scored(verdict.reward, str(rest)[:LONGEST_DETAIL])
    if not isinstance(value, Real) and hasattr(value, "item"):  # an array or tensor of one number
        value = value.item()
    if not isinstance(value, Real):
        return Verdict.unscored(f"the verifier returned {type(value).__name__}, expected a Verdict or a number")
    if not math.isfinite(float(value)):
        return Verdict.unscored(f"the verifier returned {value}, expected a finite number")
    return Verdict.scored(float(value))


def verdicts_of(values: Any, count: int, one: Callable[[Any], Verdict] = verdict_of) -> list[Verdict]:  # noqa: ANN401 - as verdict_of
    """Turn a list, array or tensor of ``count`` rewards into verdicts, each by ``one``. What has no order of its own,
    or is a text, is no list of rewards.
    """
    if isinstance(values, Mapping | Set | str | bytes | bytearray):
        reason = f"the verifier returned a {type(values).__name__}, expected a list of {count} rewards"
        return [Verdict.unscored(reason)] * count
    rewards = list(values) if values is not None else []
    if len(rewards) != count:
        return [Verdict.unscored(f"the verifier returned {len(rewards)} rewards of {count} responses")] * count
    return [one(reward) for reward in rewards]


def called(function: Callable[..., Any], given: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a user's function
    """Call ``function`` with what it names of ``given``, or with all of it when it takes any keyword; await it if need
    be.
    """
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    value = function(**{key: v for key, v in given.items() if takes_all or key in parameters})
    return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


async def _awaited(value: Any) -> Any:  # noqa: ANN401 - as called
    return await value
