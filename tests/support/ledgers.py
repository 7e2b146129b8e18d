"""A ledger with groups in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lpo_ray.records import AnchorGroup, Key, ScoredGroup, WeightsVersion
from lpo_ray.training.ledger import Ledger
from tests.support.builders import make_scored


def scored_by(ledger: Ledger, number: int, version: int = 0) -> ScoredGroup:
    """Prompt ``number`` from issue to verdict."""
    group = make_scored(number, version=version)
    attempt = ledger.issue(number, group.group.prompt.prompt_id, 60)
    group = make_scored(number, version=version, attempt=attempt)
    ledger.sampled(group.group.key)
    ledger.scored(group)
    return group


def anchor_of(key: Key) -> AnchorGroup:
    values = np.arange(6, dtype=np.float32).reshape(3, 2) + int(key[0][6:])
    return AnchorGroup(*values)


def commit(ledger: Ledger, step: int, groups: Sequence[ScoredGroup], reused: Sequence[Key] = ()) -> None:
    names = keys(groups)
    anchors = {key: anchor_of(key) for key in (*names, *reused)}
    with ledger.step(WeightsVersion(step, f"digest-{step}"), names, None, reused, anchors):
        pass


def keys(groups: Sequence[ScoredGroup]) -> list[Key]:
    return [group.group.key for group in groups]
