"""A vLLM engine that is slow, and one that is stopped: the one keeps its groups, the other is found in time."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import psutil
import pytest

from actors.rollout.remote import RemoteWorker
from lpo_ray.errors import GroupLost
from lpo_ray.records import PromptGroup, Sampling
from lpo_ray.rollout.member import Member
from tests.support.builders import make_prompt
from tests.support.clusters import Standing

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]
SILENCE, START_SILENCE = 6.0, 20.0
SAMPLING = Sampling(group_size=24, temperature=1.0, max_tokens=240, seed=3)
"""long enough not to end while the engine is slow"""


@dataclass
class Seen:
    """What was seen of one engine."""

    slow: PromptGroup
    slow_seconds: float
    restarts_before: int
    lost: GroupLost
    found_seconds: float
    hung_start: str
    """what was noted of the replacement, which is stopped while it starts"""
    hung_seconds: float


def decoding(member: Member[RemoteWorker], kind: str) -> list[psutil.Process]:
    """The processes that decode: the worker's own, or those of the engine core beside it."""
    worker = psutil.Process(member.process.pid)
    return [worker] if kind == "inprocess" else worker.children(recursive=True)


def engines() -> set[int]:
    """Processes of rollout workers of this test's cluster."""
    below = psutil.Process().children(recursive=True)
    return {found.pid for found in below if "RolloutWorker" in _command(found)}


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, too
        return " ".join(process.cmdline())
    return ""


async def stop_the_next_one(known: set[int]) -> float:
    """Stop an engine's process that is not among ``known``, once it has begun to start; returns the moment."""
    while not (fresh := engines() - known):
        await asyncio.sleep(0.05)
    await asyncio.sleep(3.0)
    psutil.Process(fresh.pop()).send_signal(signal.SIGSTOP)
    return time.monotonic()


@contextlib.asynccontextmanager
async def slowed_down(processes: list[psutil.Process], seconds: float) -> AsyncIterator[None]:
    """Let the processes compute for a tenth of a second in each second, for ``seconds``.

    On a machine with much else to do that takes longer than a tenth of a second.
    """
    until = time.monotonic() + seconds

    async def brake() -> None:
        while time.monotonic() < until:
            send(signal.SIGSTOP)
            await asyncio.sleep(0.9)
            computed, latest = computing(), time.monotonic() + SILENCE / 2
            send(signal.SIGCONT)
            await asyncio.sleep(0.1)
            while computing() < computed + 0.1 and time.monotonic() < latest:
                await asyncio.sleep(0.01)

    def send(number: int) -> None:
        for process in processes:
            process.send_signal(number)

    def computing() -> float:
        return sum(process.cpu_times().user + process.cpu_times().system for process in processes)

    braking = asyncio.ensure_future(brake())
    try:
        yield
    finally:
        braking.cancel()
        for process in processes:
            process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def seen(standing: Standing, kind: str) -> Seen:
    return standing.run(look(standing, kind))


async def look(standing: Standing, kind: str) -> Seen:
    cluster, told = standing.cluster, standing.told
    await cluster.transport.publish(standing.next_step())
    (member,) = cluster.pool.members
    member.watch.seconds = SILENCE
    member.worker._starts._watch.seconds = START_SILENCE  # of the next ones
    known, processes = engines(), decoding(member, kind)
    prompt = make_prompt(1, length=9, vocabulary=90)
    started = time.monotonic()
    async with slowed_down(processes, 1.6 * SILENCE):
        slow = await cluster.rollout.sample(prompt, SAMPLING, 0)
    slow_seconds = time.monotonic() - started
    (status,) = cluster.pool.statuses()
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(GroupLost) as lost:
        await cluster.rollout.sample(prompt, SAMPLING, 1)
    seconds = time.monotonic() - started
    started = await stop_the_next_one(known)
    while not (notes := [note for note in told.notes if "start_silence_seconds" in note]):
        await asyncio.sleep(0.1)
    hung_seconds = time.monotonic() - started
    return Seen(slow, slow_seconds, status.restarts, lost.value, seconds, notes[0], hung_seconds)


def test_one_that_is_slow_keeps_its_group_for_longer_than_it_may_be_silent(seen: Seen) -> None:
    assert len(seen.slow.responses) == SAMPLING.group_size
    assert seen.slow_seconds > 1.5 * SILENCE
    assert seen.restarts_before == 0


def test_one_that_is_stopped_is_found_within_its_silence(seen: Seen) -> None:
    assert "got on with nothing for 6 s (rollout.silence_seconds)" in seen.lost.reason
    assert SILENCE - 0.1 <= seen.found_seconds <= SILENCE + 2


def test_one_that_is_stopped_while_it_starts_is_found_within_the_silence_of_a_start(seen: Seen) -> None:
    assert "did not finish 'start its engine', and got on with nothing for 20 s" in seen.hung_start
    assert START_SILENCE / 2 <= seen.hung_seconds <= START_SILENCE + 2
