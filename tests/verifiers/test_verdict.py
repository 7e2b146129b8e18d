from __future__ import annotations

import math
import subprocess
import sys

import pytest

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.call import verify
from lpo_ray.verifiers.calling.case import Case


def test_unscored_has_no_reward() -> None:
    assert Verdict.unscored("timeout").reward is None
    assert not Verdict.unscored("timeout").is_scored
    assert Verdict.scored(0).is_scored


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_is_finite(reward: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        Verdict.scored(reward)


@pytest.mark.parametrize("reward", [None, "1", 1j])
def test_a_scored_reward_is_a_number(reward: object) -> None:
    with pytest.raises(ValueError, match="a scored reward is"):
        Verdict.scored(reward)


def raises(prompt: str, response: str, answer: str) -> Verdict:
    raise RuntimeError("no network")


def forgets(prompt: str, response: str, answer: str) -> None:
    return None


def test_a_verifier_that_fails_is_unscored() -> None:
    assert "RuntimeError: no network" in verify("tests.verifiers.test_verdict:raises", [Case("", "", "")])[0].detail
    assert verify("tests.verifiers.test_verdict:forgets", [Case("", "", "")])[0] == Verdict.unscored(
        "the verifier returned None"
    )


def test_verifier_processes_stay_light() -> None:
    """A replacement process must start in milliseconds: no torch, no numpy."""
    code = "import sys, lpo_ray.verifiers.calling.call as call; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
