"""Fakes of what runs on Ray: object references, and the pool's handle of a worker. Only these load Ray."""

from __future__ import annotations

import sys
from concurrent.futures import Future

from actors.rollout.remote import RemoteWorker
from actors.runtime.placement import Request
from actors.runtime.seats import OwnGroups
from actors.runtime.start_watch import StartWatch

NEVER = object()
"""result that does not come by itself"""


class Reference:
    """An object reference whose result comes, fails, or never comes."""

    def __init__(self, result: object = NEVER) -> None:
        self._future: Future = Future()
        if result is not NEVER:
            self.answer(result)

    def future(self) -> Future:
        """As ray.ObjectRef."""
        return self._future

    def answer(self, result: object) -> None:
        """Let the result come, or the error."""
        if isinstance(result, BaseException):
            self._future.set_exception(result)
        else:
            self._future.set_result(result)


def remote_worker(name: str, handle: object, *, is_blank: bool = False) -> RemoteWorker:
    """A worker whose actor is up: ``handle``."""
    places = OwnGroups(Request("rollout", [{}], "SPREAD"), 5)
    worker = RemoteWorker(name, places, 1, lambda seats: handle, sys.stderr.write, StartWatch(5), is_blank=is_blank)
    worker._handle = handle
    return worker
