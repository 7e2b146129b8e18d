"""A process that is stopped from outside: the run says who it waits for, so does ``lpo-ray why``, and it goes on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.live_runs import Run
from tests.support.run_history import OPTIONS, History, Output, Pause, pause

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


def check(paused: Pause, name: str, doing: str) -> None:
    stopped = f"process {paused.victim} is stopped"
    assert re.search(rf"^[a-z]+: \d+ s, .*{name}", paused.told, re.MULTILINE), paused.told
    assert re.search(rf"^{doing}.*: on [\d.]+, {stopped}", paused.told, re.MULTILINE), paused.told
    assert "quickstart: running, step" in paused.why
    assert re.search(rf"^waits for [a-z]+ since \d+ s: .*{name}", paused.why, re.MULTILINE), paused.why
    assert re.search(rf"^  {doing}", paused.why, re.MULTILINE), paused.why
    assert f"{stopped}, " in paused.why


def test_a_rank_that_is_stopped_is_named_and_the_run_goes_on(history: History) -> None:
    check(history.paused, "learner rank 0", r"learner rank 0, [a-z_0-9 ]+ since \d+ s")


def test_of_a_run_that_has_ended_it_is_said(history: History) -> None:
    assert "quickstart: ended, step" in history.interrupted.why


@pytest.mark.long
def test_an_engine_that_is_stopped_is_named_and_the_run_goes_on(tmp_path: Path, tiny_policy: Path) -> None:
    with Run(tmp_path, tiny_policy, *OPTIONS) as run:
        paused = pause(run, Output(run), "RolloutWorker")
    doing = r"rollout worker 0, \d+ groups?, oldest train-\d{8} attempt \d+ since"
    check(paused, "rollout worker 0", doing)
