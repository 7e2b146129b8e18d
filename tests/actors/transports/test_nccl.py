"""Publishing over NCCL, on a fake one: joins, deaths, hangs, engines that come and go. No communicator is ever left."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.distributed import HashStore

from lpo_ray.errors import ComponentDied, DeadlineExceeded, LearnerLost
from tests.support.fake_nccl import FakeNccl, install
from tests.support.threaded_engines import JOIN, LEARNERS_GPU, TRANSFER, Rank, Site, stand_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> FakeNccl:
    stand_in(monkeypatch)
    return install(monkeypatch)


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize("processes", [1, 2])
async def test_every_process_of_every_engine_gets_the_weights_on_its_own_device(nccl: FakeNccl, processes: int) -> None:
    site = Site(nccl, 2, processes)
    for step in (1, 2):
        await site.publish(step)
    assert not site.pool.out
    assert sorted(comm.device for comm in nccl.live) == list(range(1 + 2 * processes))
    assert nccl.made == 1 + 2 * processes  # and joined once


async def test_collectives_of_a_device_come_from_one_thread(nccl: FakeNccl) -> None:
    site = Site(nccl, 2)
    for step in (1, 2):
        await site.publish(step)
    threads = Counter(device for device, _ in {(d, thread) for d, thread, kind in nccl.issued if kind == "broadcast"})
    assert threads == dict.fromkeys(range(3), 1)


@pytest.mark.parametrize("how", ["dies", "hangs"])
async def test_an_engine_lost_in_the_transfer_takes_nobody_with_it(nccl: FakeNccl, how: str) -> None:
    site = Site(nccl, 3)
    await site.publish(1)
    lost = site.engines[1]
    (lost.dies_in if how == "dies" else lost.hangs_in).add("receive")
    started = time.monotonic()
    await site.publish(2)
    assert time.monotonic() - started < TRANSFER + JOIN
    assert list(site.pool.out) == ["w1"]
    assert isinstance(site.pool.out["w1"], ComponentDied if how == "dies" else DeadlineExceeded)
    site.end_process(lost)
    assert sorted(comm.device for comm in nccl.live) == [LEARNERS_GPU, 1, 3]
    await site.publish(3)  # with those who are left
    assert list(site.pool.out) == ["w1"]


@pytest.mark.parametrize("how", ["dies", "hangs"])
async def test_an_engine_lost_while_it_joins_takes_nobody_with_it(nccl: FakeNccl, how: str) -> None:
    site = Site(nccl, 3)
    (site.engines[1].dies_in if how == "dies" else site.engines[1].hangs_in).add("join_senders")
    await site.publish(1)
    assert list(site.pool.out) == ["w1"]
    await site.publish(2)
    assert sorted(comm.device for comm in nccl.live) == [LEARNERS_GPU, 1, 3]


async def test_a_join_that_was_given_up_and_succeeds_later_leaves_nothing(nccl: FakeNccl) -> None:
    site = Site(nccl, 2)
    nccl.joining_hangs.add(2)
    threading.Timer(JOIN + 0.2, nccl.joining_hangs.clear).start()  # in the second attempt
    await site.publish(1)
    assert not site.pool.out
    until(lambda: nccl.made == 6)  # the first group came about, too
    until(lambda: sorted(comm.device for comm in nccl.live) == [LEARNERS_GPU, 1, 2])


async def test_an_engine_that_left_between_publishes_breaks_its_group_only(nccl: FakeNccl) -> None:
    site = Site(nccl, 2)
    await site.publish(1)
    newcomer = site.add()
    await site.publisher.admit(newcomer)
    gone = site.pool.members.pop(0)
    site.end_process(site.engines[gone.index])
    await site.publish(2)
    assert site.engines[1].calls.count("join_senders") == 2
    assert site.engines[2].calls.count("join_senders") == 1
    assert Counter(comm.device for comm in nccl.live) == {LEARNERS_GPU: 2, 2: 1, 3: 1}


async def test_a_newcomer_joins_alone_and_the_others_stay_as_they_are(nccl: FakeNccl) -> None:
    site = Site(nccl, 2, processes=2)
    await site.publish(1)
    newcomer = site.add()
    await site.publisher.admit(newcomer)
    assert newcomer.version == site.pool.members[0].version
    assert site.engines[2].serves(site.policy.weights)
    await site.publish(2)
    assert [engine.calls.count("join_senders") for engine in site.engines] == [1, 1, 1]
    assert Counter(comm.device for comm in nccl.live) == {LEARNERS_GPU: 2, **dict.fromkeys(range(1, 7), 1)}


async def test_many_newcomers_are_one_group_in_the_end_and_nothing_is_left_of_the_others(nccl: FakeNccl) -> None:
    site = Site(nccl, 1)
    await site.publish(1)
    for number in range(2, 6):
        await site.publisher.admit(site.add())
        await site.publish(number)
    assert Counter(comm.device for comm in nccl.live)[LEARNERS_GPU] <= 3
    assert sorted({comm.device for comm in nccl.live}) == list(range(6))
    assert sum(comm.device != LEARNERS_GPU for comm in nccl.live) == 5
    while len(site.pool.members) > 1:  # and down again
        gone = site.pool.members.pop()
        site.end_process(site.engines[gone.index])
        await site.publish(10 + len(site.pool.members))
    assert sorted(comm.device for comm in nccl.live) == [LEARNERS_GPU, 1]


async def test_a_newcomer_that_hangs_leaves_the_others_their_group(nccl: FakeNccl) -> None:
    site = Site(nccl, 2)
    await site.publish(1)
    newcomer = site.add()
    site.engines[2].hangs_in.add("receive")
    await site.publisher.admit(newcomer)
    assert list(site.pool.out) == ["w2"]
    site.end_process(site.engines[2])
    await site.publish(2)
    assert [engine.calls.count("join_senders") for engine in site.engines[:2]] == [1, 1]
    assert sorted(comm.device for comm in nccl.live) == [LEARNERS_GPU, 1, 2]


async def test_engines_outlive_a_learner_that_hangs_and_join_the_next_one(nccl: FakeNccl) -> None:
    site = Site(nccl, 2)
    await site.publish(1)
    before = list(nccl.live)
    site.rank.hangs_in.add("advance")
    with pytest.raises(LearnerLost):
        await site.publisher.publish(2)
    assert not site.pool.out
    for comm in [comm for comm in nccl.live if comm.device == LEARNERS_GPU]:
        nccl.ncclCommAbort(comm)  # its process is ended
    site.reform(Rank(site.policy))
    await site.publish(3)
    assert sorted(comm.device for comm in nccl.live) == [LEARNERS_GPU, 1, 2]
    assert not set(map(id, before)) & set(map(id, nccl.live))


async def test_a_sender_that_is_replaced_and_a_receiver_that_is_shut_down_leave_nothing(nccl: FakeNccl) -> None:
    site = Site(nccl, 1, processes=2)
    await site.publish(1)
    site.rank.worker._sender.close()
    for process in site.engines[0].processes:
        process.call(process.weight_transfer_engine.shutdown).result()
    assert not nccl.live
