"""Calls of what a user wrote: on the event loop where it is async, else in a thread. Standard library only."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from lpo_ray.common.error_text import error_text


class Raised(Exception):
    """Error of a thread that does not come out of one as it is: SystemExit and its like would end more than the call,
    and StopIteration no future takes, so that whoever waits would wait for ever. Its text is that error's.
    """


def text_of(error: BaseException) -> str:
    """Write type and text of an error that a call raised, also in a thread."""
    return str(error) if isinstance(error, Raised) else error_text(error)


async def called(function: Callable[..., Any], *args: Any, **given: Any) -> Any:  # noqa: ANN401 - a user's
    """Call a function or method and await what it returns, if need be. A fork of this process that it comes back in is
    ended.
    """
    own = os.getpid()
    if inspect.iscoroutinefunction(function):
        found = function(*args, **given)
    else:
        found = await asyncio.to_thread(_in_thread, own, function, args, given)
    if inspect.isawaitable(found):
        found = await _awaited(found)
    if os.getpid() != own:  # nobody waits for it
        os._exit(0)
    return found


async def _awaited(found: Awaitable[Any]) -> Any:  # noqa: ANN401 - as called
    return await found


def _in_thread(own: int, function: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:  # noqa: ANN401 - as called
    try:
        return function(*args, **given)
    except StopIteration as error:
        raise Raised(error_text(error)) from error
    except Exception:
        raise
    except BaseException as error:
        raise Raised(error_text(error)) from error
    finally:
        if os.getpid() != own:
            os._exit(0)
