from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from lpo_ray.config.schema import ClusterKind
from lpo_ray.errors import ConfigError
from lpo_ray.run.preflight import check_verifier
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


ENDS = {
    "exit(3)": "SystemExit: 3",
    "import asyncio; raise asyncio.CancelledError": "CancelledError",
    "raise GeneratorExit": "GeneratorExit",
    "from tests.support.odd_verifiers import OwnEnd; raise OwnEnd": "OwnEnd, whose text cannot be made",
    "raise type('Odd', (Exception,), {'__str__': lambda self: None})": "Odd, whose text cannot be made",
}


@pytest.mark.parametrize("response", ENDS)
def test_a_response_cannot_end_who_runs_it(response: str) -> None:
    name = "tests.support.odd_verifiers:run_it"
    verdicts = verify(name, [Case("", "pass", ""), Case("", response, ""), Case("", "pass", "")])
    assert [verdict.reward for verdict in verdicts] == [1, None, 1]
    assert ENDS[response] in verdicts[1].detail


def test_who_ends_the_run_by_hand_is_heard() -> None:
    """In a verifier's own process nobody does, so it was the response."""
    name, case = "tests.support.odd_verifiers:run_it", Case("", "raise KeyboardInterrupt", "")
    with pytest.raises(KeyboardInterrupt):
        verify(name, [case])
    assert "KeyboardInterrupt" in verify(name, [case], may_interrupt=False)[0].detail


def test_a_module_that_ends_its_process_is_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "leaving.py"
    file.write_text("import sys\nsys.exit('no licence')\n")
    verdict = verify(f"{file}:reward", [Case("", "", "")])[0]
    assert verdict.lack == "failed"
    assert "SystemExit: no licence" in verdict.detail
    with pytest.raises(ConfigError, match="SystemExit: no licence"):
        check_verifier(f"{file}:reward", ClusterKind.inprocess)


def test_verifier_processes_stay_light() -> None:
    """A replacement process must start in milliseconds: no torch, no numpy."""
    code = "import sys, lpo_ray.verifiers.calling.call as call; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
