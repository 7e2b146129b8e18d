"""The control actor without Ray: who drives a run, orders and their answers, what is known of a silent driver."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from actors.control import run_control as control
from actors.control.run_control import Order, RunControl
from lpo_ray.errors import ConfigError, RunBusy
from lpo_ray.telemetry.log import LogLine
from lpo_ray.telemetry.status import state_of

LINE = LogLine(1.0, "warning", "rollout", "rollout worker 1", None, "vllm: slow")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(control, "ANSWER_SECONDS", 0.1)


async def attached(driver: str = "a") -> RunControl:
    made = RunControl("demo")
    await made.attach(driver, {"host": "host-a"})
    return made


async def test_a_second_driver_is_refused_until_the_first_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    made = await attached()
    await made.exchange("a", {"host": "host-a", "step": 3}, {})
    with pytest.raises(RunBusy, match="run demo is being driven on host-a, heard 0 s ago; expected one driver"):
        await made.attach("b", {"host": "host-b"})
    await made.attach("a", {"host": "host-a"})  # the same one may come again
    late = time.time() + control.LEASE_SECONDS + 1
    monkeypatch.setattr(control, "time", SimpleNamespace(time=lambda: late))
    await made.attach("b", {"host": "host-b"})
    with pytest.raises(RunBusy, match="was taken over by another driver"):
        await made.exchange("a", {}, {})


async def test_the_holder_of_the_same_folder_takes_over_from_a_killed_driver_at_once() -> None:
    here = {"host": "host-a", "folder": "/runs/demo", "boot": "b", "pid_namespace": "p"}
    made = RunControl("demo")
    await made.attach("a", here)
    for other in ({**here, "folder": "/other/demo"}, {**here, "boot": "c"}, {"host": "host-a"}):
        with pytest.raises(RunBusy):
            await made.attach("b", other)
    await made.attach("b", here)


async def test_an_order_reaches_the_driver_at_once_and_its_answer_comes_back() -> None:
    made = await attached()
    waiting = asyncio.ensure_future(made.order("rollout", 3))
    orders, _ = await made.exchange("a", {}, {})
    assert orders == [Order(0, "rollout", 3)]
    await made.exchange("a", {}, {0: "3 rollout workers: as it was"})
    assert await waiting == "3 rollout workers: as it was"
    refused = asyncio.ensure_future(made.order("learner", 3))
    (order,), _ = await made.exchange("a", {}, {})
    await made.exchange("a", {}, {order.number: ConfigError("learner=3; expected rollout=N")})
    with pytest.raises(ConfigError, match="expected rollout=N"):
        await refused


async def test_a_driver_that_does_not_answer_is_said_to_be_silent() -> None:
    made = await attached()
    with pytest.raises(ConfigError, match=r"did not take rollout=2 within 0\.1 s; it was heard 0 s ago"):
        await made.order("rollout", 2)
    await made.exchange("a", {}, {0: "too late, and of no interest"})


async def test_orders_to_a_driver_that_was_replaced_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    made = await attached()
    monkeypatch.setattr(control, "ANSWER_SECONDS", 5.0)
    waiting = asyncio.ensure_future(made.order("rollout", 2))
    await asyncio.sleep(0.01)
    monkeypatch.setattr(control, "LEASE_SECONDS", 0.0)
    await made.attach("b", {"host": "host-b"})
    with pytest.raises(ConfigError, match="rollout=2 was not carried out: the driver that was asked has been replaced"):
        await waiting
    assert (await made.exchange("b", {}, {}))[0] == []


async def test_what_workers_log_waits_for_the_driver_once() -> None:
    made = await attached()
    await made.say([LINE, LINE])
    assert (await made.exchange("a", {}, {}))[1] == [LINE, LINE]
    assert (await made.exchange("a", {}, {}))[1] == []


async def test_a_status_says_how_long_the_driver_has_been_silent() -> None:
    made = await attached()
    await made.exchange("a", {"host": "host-a", "ended": False}, {})
    status = await made.status()
    assert state_of(status) == "running"
    assert state_of({**status, "heard_at": time.time() - 60}) == "its driver was last heard 60 s ago (killed?)"
