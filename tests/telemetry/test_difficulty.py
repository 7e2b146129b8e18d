"""The pass rate of a prompt from one visit to the next, through a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lpo_ray.records import TargetGroup
from lpo_ray.telemetry.difficulty import Difficulty
from lpo_ray.telemetry.samples import samples_path, write_samples
from tests.support.builders import make_target
from tests.support.segments import mixed_group
from tests.support.telemetry import report_of


def visited(number: int, rewards: list[float], prompt_id: str) -> TargetGroup:
    """Prompt ``number``, under another id each time, as a source that begins again gives it."""
    target = make_target(number, (3,) * len(rewards))
    prompt = replace(target.group.prompt, prompt_id=prompt_id)
    group = replace(target.group, prompt=prompt)
    return replace(target, scored=replace(target.scored, group=group, rewards=np.array(rewards, dtype=np.float32)))


def test_a_prompt_that_comes_again_is_compared_with_its_last_visit(tmp_path: Path) -> None:
    first = [visited(0, [1, 0, 0, 0], "a"), visited(1, [1, 1, 0.1, 0], "b")]
    second = [visited(0, [1, 1, 1, 0], "c"), visited(2, [0, 0, 0, 0], "d"), visited(1, [1, 0, 0, 0], "e")]
    seen = Difficulty(1.0)
    assert seen.step(first) == {"revisited_fraction": 0.0}
    write_samples(
        samples_path(tmp_path, 1), first, report_of(first), step=1, learning_rate=0.1, divergence="forward_kl",
        after={}, decode=str,
    )  # fmt: skip
    resumed = Difficulty(1.0)
    resumed.resumed([samples_path(tmp_path, 1)])
    found = seen.step(second)
    assert found == resumed.step(second)
    assert found["revisited_fraction"] == pytest.approx(2 / 3)
    assert found["difficulty_drift"] == pytest.approx((0.5 - 0.25) / 2)
    assert found["difficulty_change"] == pytest.approx((0.5 + 0.25) / 2)


def test_a_conversation_of_many_segments_is_one_response(tmp_path: Path) -> None:
    group = mixed_group(0)
    target = make_target(0, [len(response.token_ids) for response in group.responses])
    rewards = np.array([1, 1, 0, 0], dtype=np.float32)  # the last two have five of the seven segments
    target = replace(target, scored=replace(target.scored, group=group, rewards=rewards))
    write_samples(
        samples_path(tmp_path, 1), [target], report_of([target]), step=1, learning_rate=0.1, divergence="forward_kl",
        after={}, decode=str,
    )  # fmt: skip
    resumed = Difficulty(1.0)
    resumed.resumed([samples_path(tmp_path, 1)])
    assert resumed.step([target])["difficulty_drift"] == 0.0
