"""The control actor of a run: detached and named, so that any machine of the cluster reaches it, and it outlives the
driver that made it.

```
 driver ── exchange (status, answers) ──▶ control of RUN ◀── status, order ── lpo-ray status | why | scale
        ◀── orders, as soon as there are ──
```
The driver asks for orders about once a second, and reports the run's status. A query is answered also when the driver
is stuck or dead, and says how long it has been silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import ray
from ray.actor import ActorProxy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.runtime.remote_calls import INNER, call
from lpo_ray.errors import ConfigError, LpoRayError, RunBusy
from lpo_ray.telemetry.log import LogLine

NAMESPACE = "lpo-ray"
LEASE_SECONDS = 15.0
"""silence after which a driver is taken for dead, and another may drive the run"""
POLL_SECONDS = 1.0
"""for new orders, in one exchange"""
CALL_SECONDS = 30.0
"""for a call of the control actor"""
MOST_LINES = 10_000
"""of workers' logs that wait for the driver; older ones are dropped"""
ANSWER_SECONDS = 20.0
"""for the driver to answer an order"""


@dataclass(frozen=True, slots=True)
class Order:
    """A user's order to a running run: have ``count`` workers of ``role``."""

    number: int
    role: str
    count: int


class RunControl:
    """Control of one run: a plain class that ``claim`` makes an actor. All methods may run concurrently."""

    def __init__(self, run: str) -> None:
        self._run, self._driver, self._heard_at = run, "", 0.0
        self._status: Mapping[str, object] = {}
        self._numbers = itertools.count()
        self._orders: asyncio.Queue[Order] = asyncio.Queue()
        self._lines: deque[LogLine] = deque(maxlen=MOST_LINES)
        self._answers: dict[int, asyncio.Future[str]] = {}

    async def attach(self, driver: str, status: Mapping[str, object]) -> None:
        """Put ``driver`` in charge of the run, whose status is ``status``. Raises RunBusy while another driver is. One
        that holds the same folder on the same machine takes over at once: by the folder's lock the other is gone.
        """
        silent = time.time() - self._heard_at
        if self._driver not in ("", driver) and silent < LEASE_SECONDS and not _holds_its_folder(status, self._status):
            raise RunBusy(
                f"run {self._run} is being driven on {self._status.get('host', 'another host')}, heard {silent:.0f} s "
                f"ago; expected one driver for each run.name: take another run.name, or stop that one first"
            )
        self._driver, self._heard_at, self._status = driver, time.time(), status
        self._fail("the driver that was asked has been replaced")

    async def exchange(
        self, driver: str, status: Mapping[str, object], answers: Mapping[int, str | LpoRayError]
    ) -> tuple[list[Order], list[LogLine]]:
        """Take the driver's status and its answers to orders; return new orders, for which it waits up to POLL_SECONDS,
        and what workers have logged. Raises RunBusy when the driver was taken for dead and another is in charge.
        """
        if driver != self._driver:
            raise RunBusy(f"run {self._run} was taken over by another driver; this one was silent for too long")
        self._status, self._heard_at = status, time.time()
        for number, answer in answers.items():
            future = self._answers.get(number)
            if future is None or future.done():
                continue
            if isinstance(answer, LpoRayError):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        orders: list[Order] = []
        with contextlib.suppress(TimeoutError):
            orders.append(await asyncio.wait_for(self._orders.get(), POLL_SECONDS))
        while not self._orders.empty():
            orders.append(self._orders.get_nowait())
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        return orders, lines

    async def say(self, lines: Sequence[LogLine]) -> None:
        """Take a worker's lines for the run's log."""
        self._lines.extend(lines)

    async def order(self, role: str, count: int) -> str:
        """Have the driver scale ``role``; returns its answer. Raises ConfigError when it refuses the order, or does not
        answer.
        """
        order = Order(next(self._numbers), role, count)
        self._answers[order.number] = answer = asyncio.get_running_loop().create_future()
        self._orders.put_nowait(order)
        try:
            return await asyncio.wait_for(answer, ANSWER_SECONDS)
        except TimeoutError:
            silent = time.time() - self._heard_at
            raise ConfigError(
                f"the driver of {self._run} did not take {role}={count} within {ANSWER_SECONDS:g} s; it was heard "
                f"{silent:.0f} s ago. Expected an answer: see `lpo-ray why`"
            ) from None
        finally:
            self._answers.pop(order.number, None)

    async def status(self) -> dict[str, object]:
        """Return the status that the driver reported last, and when that was."""
        return {**self._status, "heard_at": self._heard_at}

    def _fail(self, why: str) -> None:
        while not self._orders.empty():
            order = self._orders.get_nowait()
            future = self._answers.get(order.number)
            if future is not None and not future.done():
                future.set_exception(ConfigError(f"{order.role}={order.count} was not carried out: {why}"))


def _holds_its_folder(status: Mapping[str, object], of: Mapping[str, object]) -> bool:
    keys = ("folder", "boot", "pid_namespace")
    return all(status.get(key) is not None and status.get(key) == of.get(key) for key in keys)


def control_name(run: str) -> str:
    """Name of a run's control actor."""
    return f"control of {run}"


async def claim(run: str, driver: str, status: Mapping[str, object]) -> ActorProxy[RunControl]:
    """Put ``driver`` in charge of ``run``, and return the run's control actor. If there is none it is made, on the
    driver's own node: what cuts it off there cuts off the driver too. Raises RunBusy while another is in charge.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    handle = (
        ray.remote(RunControl)
        .options(
            name=control_name(run), namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0,
            max_concurrency=1000, scheduling_strategy=here,
        )
        .remote(run)
    )  # fmt: skip
    await call(handle.attach.remote(driver, status), who=control_name(run), what="attach", seconds=CALL_SECONDS / INNER)
    return handle


def find(run: str) -> ActorProxy[RunControl]:
    """Find the control actor of ``run`` on the cluster of this process. Raises ConfigError when there is none."""
    try:
        return ray.get_actor(control_name(run), namespace=NAMESPACE)
    except ValueError:
        entries = cast("list[dict[str, str]]", ray.util.list_named_actors(all_namespaces=True))
        names = [entry["name"] for entry in entries if entry["namespace"] == NAMESPACE]
        known = sorted(name.removeprefix("control of ") for name in names)
        raise ConfigError(
            f"no run named {run} is active in this cluster; expected one of {', '.join(known) or '(there is none)'}"
        ) from None
