"""ZeRO shards that were tampered with: nothing in them runs, on any rank or in DeepSpeed's converter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.cluster import connect, disconnect
from actors.learner.group import LearnerGroup
from lpo_ray.errors import CheckpointDamaged
from tests.support.learner_ranks import on, steps
from tests.support.pickles import Evil
from tests.support.real_specs import plan_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]


def test_shards_that_would_run_code_are_refused_and_nothing_runs(tiny_policy: Path, tmp_path: Path) -> None:
    one = plan_of(tmp_path, tiny_policy, "learner.world_size=1")
    saved, mark = tmp_path / "step_000001", tmp_path / "ran"
    refused: list[str] = []

    async def work(learner: LearnerGroup) -> None:
        await steps(learner, one, 1)
        await learner.save(saved)
        await learner.restore(saved, 1)  # as it was written
        [shard] = saved.rglob("*optim_states.pt")
        content = torch.load(shard, weights_only=False)
        torch.save({**content, "evil": Evil(mark)}, shard)
        for written_by in (1, 2):  # by the rank itself, and by the converter
            with pytest.raises(CheckpointDamaged) as error:
                await learner.restore(saved, written_by)
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
