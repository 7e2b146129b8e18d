"""Publishing over gloo between threads: the same engines that come, go and fail as with NCCL, and the same groups."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.distributed import HashStore

from lpo_ray.errors import ComponentDied, DeadlineExceeded
from tests.support.threaded_engines import Site, stand_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    stand_in(monkeypatch)
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def joins(site: Site) -> list[int]:
    return [engine.calls.count("join_senders") for engine in site.engines]


async def test_newcomers_join_alone_until_one_group_is_formed_of_all() -> None:
    site = Site(None, 1, processes=2)
    await site.publish(1)
    groups = []
    for number in range(2, 6):
        await site.publisher.admit(site.add())
        assert site.engines[-1].serves(site.policy.weights)
        await site.publish(number)
        groups.append(len(site.rank.worker._sender._groups))
    assert not site.pool.out
    assert groups == [2, 3, 1, 2]
    assert joins(site) == [2, 2, 2, 2, 1]


@pytest.mark.parametrize("how", ["dies", "hangs"])
async def test_an_engine_lost_in_the_transfer_breaks_its_group_only(how: str) -> None:
    site = Site(None, 2)
    await site.publish(1)
    await site.publisher.admit(site.add())
    (site.engines[1].dies_in if how == "dies" else site.engines[1].hangs_in).add("receive")
    await site.publish(2)
    assert list(site.pool.out) == ["w1"]
    assert isinstance(site.pool.out["w1"], ComponentDied if how == "dies" else DeadlineExceeded)
    assert joins(site) == [2, 1, 1]
    await site.publish(3)
    assert joins(site) == [2, 1, 1]
