"""Ray calls with a deadline, or under a watch: a failure names the actor that failed."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Hashable, Sequence
from typing import TypeVar

import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError

from lpo_ray.common.silence import Silent, Watch
from lpo_ray.errors import ComponentDied, ComponentFailed, DeadlineExceeded, LpoRayError, NoProgress

T = TypeVar("T")
INNER = 0.8
"""share of a deadline that the called process keeps itself, so that its own account of what was late still arrives"""


async def call(
    reference: ray.ObjectRef[T], *, who: str, what: str, seconds: float | None = None, watch: Watch | None = None,
    name: Hashable = None,
) -> T:  # fmt: skip
    """Await one actor call. Raises DeadlineExceeded, ComponentDied or ComponentFailed naming ``who``, or the
    LpoRayError that the call raised. ``seconds``, ``watch``: see ``call_all``; ``name``: of the call, to the watch.
    """
    return (await call_all([reference], who=[who], what=what, seconds=seconds, watch=watch, name=name))[0]


async def call_all(
    references: Sequence[ray.ObjectRef[T]],
    *,
    who: Sequence[str],
    what: str,
    seconds: float | None = None,
    watch: Watch | None = None,
    name: Hashable = None,
) -> list[T]:
    """Await calls that must all succeed, such as a collective: the first failure ends the wait.

    The limits are ``seconds``, where the length of the work is known, and the silence of ``watch``: NoProgress then.
    When a rank of a collective dies, the others wait for it inside. So the failure is raised at once and callers end
    the group, instead of waiting for ranks that cannot answer.
    """
    futures = [asyncio.wrap_future(reference.future()) for reference in references]
    names = dict(zip(futures, who, strict=True))
    try:
        answers = asyncio.wait(futures, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        silent = None
        try:
            await (answers if watch is None else watch.result(answers, name))
        except Silent:
            silent = watch
        for future in futures:
            if future.done():
                _raise_named(future, names[future], what)
        if late := ", ".join(sorted(names[future] for future in futures if not future.done())):
            if silent is not None:
                raise NoProgress(late, what, silent.seconds, silent.setting)
            raise DeadlineExceeded(late, what, math.inf if seconds is None else seconds)
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


async def call_each(
    references: Sequence[ray.ObjectRef[T]], *, who: Sequence[str], what: str, seconds: float
) -> list[T | LpoRayError]:
    """Await calls that may fail one by one. The error that ``call`` would raise stands in place of a result."""

    async def one(reference: ray.ObjectRef[T], name: str) -> T | LpoRayError:
        try:
            return await call(reference, who=name, what=what, seconds=seconds)
        except LpoRayError as error:
            return error

    return list(await asyncio.gather(*(one(*pair) for pair in zip(references, who, strict=True))))


def _raise_named(future: asyncio.Future[T], who: str, what: str) -> None:
    error = future.exception()
    if error is None:
        return
    if isinstance(error, ActorDiedError | RayActorError):
        raise ComponentDied(who, str(error).strip().replace("\n", " ")) from error
    if isinstance(error, OutOfMemoryError):
        raise ComponentDied(who, _memory_ran_out(str(error))) from error
    cause = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, LpoRayError):
        raise ComponentFailed(who, what, f"{type(cause).__name__}: {cause}") from error
    if isinstance(error, RayTaskError):
        raise cause from error
    raise error


def _memory_ran_out(text: str) -> str:
    """Cut Ray's fifty lines down to the amounts; the rest names every process of the machine."""
    used = re.search(r"was ([\d.]+ ?GB used / [\d.]+ ?GB limit)", text)
    amount = used[1] if used else text.strip().partition("\n")[0][:200]
    return f"Ray killed it because its node ran low on memory ({amount}); expected less on this node: see lpo-ray plan"
