"""Shards of an earlier version that were tampered with: nothing in them runs, whatever the number of ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from actors.cluster import connect, disconnect
from actors.learner.group import LearnerGroup
from actors.learner.worker import LearnerWorker
from lpo_ray.errors import CheckpointDamaged
from tests.support.learner_ranks import on, steps
from tests.support.pickles import Evil
from tests.support.real_specs import plan_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]


def save_as_before(worker: LearnerWorker, folder: Path) -> None:
    worker._policy.engine.save_checkpoint(str(folder), tag="shards")


def test_shards_that_would_run_code_are_refused_and_nothing_runs(tiny_policy: Path, tmp_path: Path) -> None:
    one = plan_of(tmp_path, tiny_policy, "learner.world_size=1")
    saved, mark = tmp_path / "step_000001", tmp_path / "ran"
    refused: list[str] = []

    async def work(learner: LearnerGroup) -> None:
        await steps(learner, one, 1)
        await learner.ranks[0].__ray_call__.remote(save_as_before, saved)
        before = await learner.digest()
        await steps(learner, one, 1, first=1)
        await learner.restore(saved, 1)  # as it was written
        assert await learner.digest() == before
        [shard] = saved.rglob("*optim_states.pt")
        content = torch.load(shard, weights_only=False)
        for ranks in (1, 2):  # also where another number of ranks wrote them
            torch.save({**content, "evil": Evil(mark)}, shard)
            if ranks == 2:
                shutil.copyfile(shard, shard.with_name("zero_pp_rank_1_mp_rank_00_optim_states.pt"))
            with pytest.raises(CheckpointDamaged) as error:
                await learner.restore(saved, ranks)
            refused.append(str(error.value))

    connect(one.config)
    try:
        on(one, tiny_policy, work)
    finally:
        disconnect()
    assert not mark.exists()
    assert all("has more than tensors" in text for text in refused), refused
    assert torch.load(next(saved.rglob("*optim_states.pt")), weights_only=False)["evil"] is None
    assert mark.exists()  # the trap was a real one
