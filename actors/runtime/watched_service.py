"""A service as a component: one actor that is replaced when it dies, watched while it has groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Generic, Protocol, TypeVar

import ray
from ray.actor import ActorProxy

from actors.runtime.remote_calls import call, call_each
from actors.runtime.start_watch import StartWatch
from actors.runtime.supervised import RestartableActor
from lpo_ray.common.held import Held
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.silence import Progress, Watch
from lpo_ray.errors import LpoRayError
from lpo_ray.interfaces import Events
from lpo_ray.records import BusyWorker, Key, Process

T = TypeVar("T")
RESIZE_SECONDS = 120.0
"""for a service to take another number of processes"""


class Service(Protocol):
    """Service: what is called of it beside its own work."""

    async def start(self) -> Process:
        """Return where it runs, once it is ready."""
        ...

    async def progress(self) -> Progress:
        """Say how far it is."""
        ...

    async def close(self) -> None:
        """End what it started."""
        ...


class PooledService(Service, Protocol):
    """Service with child processes."""

    async def resize(self, num_processes: int, /) -> None:
        """Use another number of processes from now on."""
        ...


S = TypeVar("S", bound=Service)
P = TypeVar("P", bound=PooledService)


class WatchedService(Generic[S]):
    """A service's actor, the groups that it has, and how long it has been silent about them."""

    KIND: ClassVar[str]
    """what it is for"""
    SILENCE_SETTING: ClassVar[str]
    """what says how long it may be silent"""
    CLOSE_SECONDS: ClassVar[float] = 10.0
    """that it has to end its processes"""

    def __init__(
        self,
        make: Callable[[], ActorProxy[S]],
        silence_seconds: float,
        starts: StartWatch,
        start_seconds: float,
        rule: RestartRule,
        events: Events,
    ) -> None:
        """``make``: makes the actor. ``silence_seconds``: time in which it must get on while it has calls, as its
        ``progress`` tells.
        """
        self.events = events
        self._watch = Watch(self._progress, silence_seconds, self.SILENCE_SETTING)
        self.groups = Held[Key]()
        """groups that it has -> since when"""
        self.service = RestartableActor(
            f"{self.KIND} service", make, lambda actor: actor.start.remote(), rule, events, starts, start_seconds
        )  # fmt: skip

    async def _asked(self, remote: Callable[[ActorProxy[S]], ray.ObjectRef[T]], what: str, key: Key) -> T:
        """Return the result of a call for a group that it has; see ``RestartableActor.call``."""
        return await self.service.call(remote, what, watch=self._watch, name=key)

    def silence_of(self, key: Key) -> float:
        """Seconds since the service, at work for a group, gave a sign of life; infinite when it does not have it. None
        pass while the service is being replaced: that has limits of its own.
        """
        silence = self._watch.silence_of(key)
        return 0.0 if key in self.groups and math.isinf(silence) else silence

    def busy(self) -> list[BusyWorker]:
        """Return the service while it has groups."""
        return [BusyWorker.of_groups(self.service.name, self.groups, self.service.process)] if self.groups else []

    async def close(self) -> None:
        """End the service's processes, then the service. Never raises."""
        await call_each(
            [self.service.handle.close.remote()], who=[self.service.name], what="close", seconds=self.CLOSE_SECONDS
        )
        await self.service.close()

    async def _progress(self) -> Progress | None:
        try:
            return await call(self.service.handle.progress.remote(), who=self.service.name, what="say how far it is")
        except LpoRayError:
            return None


class WatchedPool(WatchedService[P]):
    """A service with a pool of child processes."""

    def __init__(
        self,
        make: Callable[[int], ActorProxy[P]],
        num_processes: int,
        silence_seconds: float,
        starts: StartWatch,
        start_seconds: float,
        rule: RestartRule,
        events: Events,
    ) -> None:
        """``make``: makes the actor, with so many child processes; others as in WatchedService."""
        self.num_processes = num_processes
        super().__init__(lambda: make(self.num_processes), silence_seconds, starts, start_seconds, rule, events)

    async def scale(self, num_processes: int) -> str:
        """Give the service another number of processes, and say so."""
        self.num_processes = num_processes
        await self.service.call(lambda actor: actor.resize.remote(num_processes), "resize its pool", RESIZE_SECONDS)
        return f"{num_processes} {self.KIND} processes"
