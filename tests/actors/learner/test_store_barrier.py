"""Ranks that wait for each other at their store: as long as the others get on, and no longer."""

from __future__ import annotations

import threading
import time

import pytest
from torch.distributed import DistStoreError, HashStore

from actors.learner.store_barrier import StoreBarrier


def barriers(count: int, seconds: float) -> list[StoreBarrier]:
    store = HashStore()
    return [StoreBarrier(store, rank, count, seconds) for rank in range(count)]


def test_nobody_leaves_before_all_are_there_at_each_of_many_waits() -> None:
    ranks, log, lock = barriers(3, 30.0), [], threading.Lock()

    def work(rank: int) -> None:
        for number in range(4):
            time.sleep(0.01 * rank)
            with lock:
                log.append((number, "came"))
            ranks[rank].wait("it")
            with lock:
                log.append((number, "left"))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for number in range(4):
        assert log.index((number, "left")) > max(i for i, entry in enumerate(log) if entry == (number, "came"))


def test_a_rank_that_gets_on_is_waited_for_longer_than_it_may_be_silent() -> None:
    ranks, came = barriers(2, 0.4), threading.Event()

    def slow() -> None:
        for done in range(12):
            ranks[1].beat((done, 0))
            time.sleep(0.1)
        came.set()
        ranks[1].wait("saving")

    thread = threading.Thread(target=slow)
    thread.start()
    ranks[0].wait("saving")
    assert came.is_set()
    thread.join(10)


def test_ranks_that_are_silent_are_named_with_the_setting() -> None:
    ranks = barriers(4, 0.2)
    ranks[2]._store.set("barrier/0/2", "saving")  # is there already
    threading.Thread(target=lambda: [ranks[1].beat("the same") for _ in range(10)]).start()
    said = r"rank 0 waited at the end of saving for rank 1, rank 3, which got on with nothing for 0\.2 s \(learner\.sil"
    with pytest.raises(DistStoreError, match=said):
        ranks[0].wait("saving")
