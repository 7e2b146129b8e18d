from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from lpo_ray import errors
from lpo_ray.common.seeds import derive_seed
from lpo_ray.records import AnchorGroup, Prompt, Response, ScoredGroup, TargetGroup, zero_anchor
from tests.support.builders import make_group, make_scored, make_target


def test_lengths_are_checked_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="versions has 1 entries, expected 2"):
        Response(np.array([1, 2]), np.zeros(2, np.float32), np.zeros(1, np.int64), "stop")
    with pytest.raises(ValueError, match="rewards has 3 entries, expected 2"):
        ScoredGroup(make_group(0), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="anchor has 1 entries, expected 2"):
        TargetGroup(make_scored(0), np.zeros(2, np.float32), zero_anchor([make_scored(0, (3,))])[0], 1.0)
    with pytest.raises(ValueError, match=r"tempering is 1\.5, expected 0 to 1"):
        replace(make_target(0), tempering=1.5)
    with pytest.raises(ValueError, match="drift has 1 entries, expected 2"):
        AnchorGroup(np.zeros(2, np.float32), np.zeros(1, np.float32), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="has no tokens"):
        Prompt("p", np.array([], dtype=np.int64), "", "countdown")
    with pytest.raises(ValueError, match="expected finite numbers"):
        ScoredGroup(make_group(0), np.array([np.nan, 0], np.float32))


def test_a_group_that_travelled_is_the_same_and_is_a_few_arrays() -> None:
    group = make_group(3, (5, 1, 9), version=2)
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(group, protocol=5, buffer_callback=buffers.append)
    found = pickle.loads(sent, buffers=buffers)
    assert len(buffers) == 3  # the prompt's tokens and two columns, however many responses there are; versions as runs
    assert (found.key, found.prompt.answer) == (group.key, group.prompt.answer)
    for mine, theirs in zip(found.responses, group.responses, strict=True):
        assert mine.finish_reason == theirs.finish_reason
        for name in ("token_ids", "behaviour_logprobs", "versions"):
            assert getattr(mine, name).dtype == getattr(theirs, name).dtype
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


@pytest.mark.parametrize(
    "error",
    [
        errors.ConfigError("a"),
        errors.GroupLost("p", 1, "why"),
        errors.DeadlineExceeded("who", "what", 3.0),
        errors.ComponentDied("who", "cause"),
        errors.ComponentFailed("who", "what", "cause"),
        errors.WeightsNotProved("engine 0", "3:ab", 0.5, 1e-3, "probe"),
        errors.Interrupted(15, 7),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_a_process_border(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


def test_the_oldest_token_decides_the_age_of_a_group() -> None:
    group = make_group(0, (3, 5), version=4)
    group.responses[1].versions[2] = 1
    assert group.oldest_version == 1


def test_no_two_draws_share_a_seed() -> None:
    seeds = {derive_seed(run, f"p{p}", a, k) for run in range(4) for p in range(20) for a in range(3) for k in range(8)}
    assert len(seeds) == 4 * 20 * 3 * 8
    assert max(seeds) < 2**62
    assert derive_seed(0, "p", 11) != derive_seed(0, "p1", 1)
