"""Programs that only know an API, unmodified, are trained on the real stack, and engine and endpoint die meanwhile."""

from __future__ import annotations

import importlib.util
import shutil
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from lpo_ray.records import PromptGroup
from lpo_ray.telemetry.samples import read_step
from lpo_ray.training.ledger_audit import audit
from tests.support import e2e_commands
from tests.support.e2e_commands import PROGRAMS, chosen
from tests.support.foreign_models import long_policy
from tests.support.live_runs import Run, find, finish
from tests.support.watched_calls import Watched, watching

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
SMALL = (
    "sampling.group_size=2", "pipeline.groups_per_step=4", "rollout.num_workers=2", "verifier.num_processes=1",
    "learner.lr=1e-3", "supervision.backoff_seconds=0.1", "environment.processes=4", "rollout.kv_cache_gib=0.2",
)  # fmt: skip


@dataclass
class Trained:
    """A run that came to its end, and what was trained in it."""

    folder: Path
    output: str
    watched: Watched

    def groups(self) -> Iterator[tuple[int, PromptGroup]]:
        """Each group that was trained, with its step."""
        for path in sorted((self.folder / "samples").glob("step_*.parquet")):
            for target in read_step(path).targets:
                yield int(path.stem.partition("_")[2]), target.group

    def check(self) -> Counter[int]:
        """Check every trained token, and the books; returns how many responses have how many turns."""
        found = Counter(
            len(self.watched.check(group, k)) for _, group in self.groups() for k in range(len(group.responses))
        )
        assert audit(self.folder).violations == ()
        for path in self.folder.rglob("*"):
            assert not path.is_file() or b"lpo-session" not in path.read_bytes(), path
        assert "lpo-session" not in self.output
        return found


def trained(folder: Path, policy: Path, *options: str, kill: Mapping[int, str] | None = None) -> Trained:
    """Train to the end; after a step of ``kill`` an actor of that name dies while a program is at work."""
    with watching(folder / "quickstart") as watched, Run(folder, policy, *SMALL, *options) as run:
        for step, actor in (kill or {}).items():
            run.wait_for_step(step)
            _working(str(Path(e2e_commands.__file__)), str(ROOT / "configs" / "agents"))
            find(run, actor)[0].kill()
        output = finish(run)
        assert run.process.returncode == 0, output
        run.assert_nothing_is_left()
    return Trained(run.folder, output, watched)


def _working(*words: str) -> None:
    """Wait until there is a process whose command has one of these words."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if any(word in line for word in words) and "lpo_ray" not in line:
                return
        time.sleep(0.02)
    raise AssertionError(f"no process of {words} came")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Trained:
    for program in ("curl", "node"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here")
    return trained(
        tmp_path_factory.mktemp("runs"), tiny_policy, f"task.agent=[python, {e2e_commands.__file__}]",
        "sampling.max_tokens=12", "run.steps=5", kill={1: "RolloutWorker", 2: "EndpointService"},
    )  # fmt: skip


def test_each_program_is_trained_in_two_steps_at_least(commands: Trained) -> None:
    steps: dict[int, set[int]] = defaultdict(set)
    for step, group in commands.groups():
        program = chosen(group.prompt.row["prompt"])
        steps[program].add(step)
        turns = 2 if "by_hand" in PROGRAMS[program] else 1
        assert [len(response.turns) for response in group.responses] == [turns, turns], PROGRAMS[program]
        assert all(r.conversation and r.conversation.ended in ("done", "length") for r in group.responses)
    assert {program: len(found) >= 2 for program, found in steps.items()} == dict.fromkeys(range(len(PROGRAMS)), True)


def test_every_token_that_programs_were_trained_on_was_drawn(commands: Trained) -> None:
    assert commands.check().total() == 5 * 4 * 2
    assert "is taken out of the pool" in commands.output
    assert "endpoint service is replaced" in commands.output
    with sqlite3.connect(commands.folder / "ledger.sqlite") as ledger:
        reasons = [reason for (reason,) in ledger.execute("SELECT reason FROM attempts WHERE state = 'lost'")]
    assert all("did not outlive the endpoint" in reason for reason in reasons), reasons


@pytest.mark.long
@pytest.mark.parametrize(
    ("package", "agent", "turns"),
    [("smolagents", f"{ROOT}/configs/agents/smolagents_code.py:solve", 3),
     ("minisweagent", f"[{sys.executable}, {ROOT}/configs/agents/mini_swe.py]", 3)],
)  # fmt: skip
def test_a_framework_is_trained_unmodified(package: str, agent: str, turns: int, tmp_path: Path) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    done = trained(
        tmp_path / "runs", long_policy(tmp_path / "policy"), f"task.agent={agent}", "task.template=chat",
        "run.steps=2", "pipeline.groups_per_step=2", "rollout.num_workers=1", "sampling.max_tokens=32",
        "environment.processes=2", "rollout.max_model_len=32768", "environment.memory_mib=4096",
    )  # fmt: skip
    assert done.check() == {turns: 2 * 2 * 2}
