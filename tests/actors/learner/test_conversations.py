"""Conversations on real ranks of ZeRO-3: cut and shared among ranks as they may be, their gradient is the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lpo_ray.learner.merge_ranks import merge_reports
from lpo_ray.learner.packing import Packing, pack_update
from lpo_ray.records import Update, UpdateReport
from tests.support.policies import (
    OBJECTIVE,
    ONE_RESPONSE,
    PLACES,
    SHAPES,
    WHOLE,
    conversations_of,
    cut_at,
    make_policy,
    reference,
    travelled,
)
from tests.support.zero3_ranks import on_ranks, rank_settings


def projected(rank: int, model: Path, steps: Sequence[Sequence[Update]]) -> list[list[UpdateReport]]:
    """Run the updates of each step on a rank that learns nothing from them."""
    from actors.learner.zero3 import Zero3Policy, load_sharded
    from lpo_ray.learner.updates import run_updates

    settings = rank_settings(model, "float32", packing=Packing(2, WHOLE, share_prompt=True))
    policy = Zero3Policy(
        load_sharded(str(model), settings, lambda: None), settings.optimiser, gradient_checkpointing=False
    )
    return [run_updates(policy, travelled(updates, rank), rank, OBJECTIVE, 0.0) for updates in steps]


@pytest.mark.timeout(300)
def test_ranks_project_a_conversation_as_one_response(tmp_path: Path) -> None:
    make_policy().model.float().save_pretrained(tmp_path)
    plain = conversations_of(SHAPES, anchored=True)
    expected = reference(plain, OBJECTIVE)
    packings = [Packing(2, WHOLE, share_prompt=True), Packing(2, ONE_RESPONSE, share_prompt=True)]
    steps = [[pack_update(targets, packing)] for targets in (plain, cut_at(plain, PLACES)) for packing in packings]
    by_rank = on_ranks(2, projected, tmp_path, steps)
    coefficients = []
    for number in range(len(steps)):
        report = merge_reports([found[number] for found in by_rank])
        assert report.updates[0].norms.gradient == pytest.approx(float(expected.norm()), rel=1e-4)
        coefficients.append(np.concatenate([group.coefficient for group in report.groups]))
    for found in coefficients[1:]:
        np.testing.assert_allclose(found, coefficients[0], rtol=1e-4, atol=1e-6)
