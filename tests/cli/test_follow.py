"""`lpo-ray logs --follow` and `submit --follow`: exit code 0 is for a run that succeeded, and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
from collections.abc import AsyncIterator

import pytest

from actors.control import jobs
from actors.control.jobs import RunJob
from lpo_ray.cli import runs
from lpo_ray.cli.runs import follow_command
from lpo_ray.errors import ComponentFailed, DeadlineExceeded, LpoRayError, RunNotDone


@dataclasses.dataclass
class FakeJobs:
    """A job server whose job is in one state after the other, the last for ever."""

    states: list[str]

    def find(self, run: str) -> RunJob:
        return self.state("x-1")

    def state(self, job_id: str) -> RunJob:
        now = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return RunJob("x", job_id, now, 0.0, "what it said")

    def logs(self, job_id: str) -> str:
        return "so far\n"

    async def follow(self, job_id: str) -> AsyncIterator[str]:
        yield "step 1\n"

    def wait(self, job_id: str, seconds: float) -> RunJob:
        for _ in range(3):
            if (job := self.state(job_id)).state not in ("PENDING", "RUNNING"):
                return job
        raise DeadlineExceeded("job", "end", seconds)


def follow(monkeypatch: pytest.MonkeyPatch, *states: str) -> None:
    monkeypatch.setattr(jobs, "Jobs", lambda _: FakeJobs(list(states)))
    monkeypatch.setattr(runs, "run_until_signal", lambda work: asyncio.run(work(None)))
    follow_command("x", "http://head:8265", follow=True)


def test_a_run_that_succeeded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    follow(monkeypatch, "RUNNING", "RUNNING", "SUCCEEDED")  # what it says ends before the job is said to have ended
    assert capsys.readouterr().out == "step 1\njob x-1: SUCCEEDED\n"


@pytest.mark.parametrize(
    ("state", "error", "said"),
    [
        ("FAILED", ComponentFailed, "what it said"),
        ("STOPPED", RunNotDone, "x was stopped before its end (job x-1); continue with run.resume=auto"),
        ("RUNNING", RunNotDone, "x says no more, and has not ended (job x-1: RUNNING)"),
        ("PENDING", RunNotDone, "follow it again with lpo-ray logs x --follow"),
    ],
)
def test_a_run_that_did_not(monkeypatch: pytest.MonkeyPatch, state: str, error: type[LpoRayError], said: str) -> None:
    with pytest.raises(error) as raised:
        follow(monkeypatch, state)
    assert said in str(raised.value)
    assert raised.value.exit_code == 1
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_what_was_said_so_far_is_no_judgement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "Jobs", lambda _: FakeJobs(["FAILED"]))
    follow_command("x", "http://head:8265", follow=False)
    assert capsys.readouterr().out == "so far\n"
