"""A run that is killed, or loses power, whenever it writes: the same command ends as if nothing had been."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import os
import random
import shutil
import threading
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lpo_ray.common.database import Database
from lpo_ray.config import load_config
from lpo_ray.errors import ConfigError, NoRoom, RunBusy
from lpo_ray.interfaces import Events
from lpo_ray.records import Prompt, PromptGroup, Publication, Sampling, StepReport, TrainBatch, WeightsVersion
from lpo_ray.run import settings
from lpo_ray.run.folder import held
from lpo_ray.run.recorder import Recorder
from lpo_ray.run.signals import Signals
from lpo_ray.run.spec import RunSpec, make_spec
from lpo_ray.run.train import Build, train
from lpo_ray.training.checkpoint import list_checkpoints
from lpo_ray.training.ledger import read_ledger
from lpo_ray.training.ledger_audit import audit
from tests.support.fakes import FakeComponents
from tests.support.power_cut import Moments, shown

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
STEPS = 5


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its eighteen charts take longer than the run."""
    monkeypatch.setattr("lpo_ray.run.recorder.write_report", lambda folder: None)


class Hashing(FakeComponents):
    """A learner whose weights are the digest of all that it learned, and from what."""

    def __init__(self, model: Path, learning: str) -> None:
        super().__init__()
        self.model, self.learning, self.weights = model, learning, "at the start"
        self.restored: int | None = None

    async def project(self, batch: TrainBatch) -> StepReport:
        report = await super().project(batch)
        learned = sorted({group.key[0] for update in report.updates for group in update.groups})
        self.weights = blake2b(f"{self.weights} {self.learning} {learned}".encode(), digest_size=16).hexdigest()
        return report

    async def publish(self, step: int) -> Publication:
        made = await super().publish(step)
        return dataclasses.replace(made, version=WeightsVersion(step, self.weights))

    async def digest(self) -> str:
        return self.weights

    async def save(self, folder: Path) -> None:
        (folder / "policy").mkdir()
        shutil.copy(self.model / "config.json", folder / "policy")
        (folder / "shards").mkdir()
        (folder / "shards" / "state").write_text(self.weights)

    async def restore(self, folder: Path, written_by: int) -> None:
        self.weights = (folder / "shards" / "state").read_text()


def spec_in(runs: Path, policy: Path, *overrides: str) -> RunSpec:
    return make_spec(
        load_config(
            QUICKSTART,
            [
                f"run.dir={runs}", "run.name=cut", f"run.steps={STEPS}", "run.resume=auto", "cluster.kind=inprocess",
                "learner.world_size=1", f"model.path={policy}", "sampling.group_size=2", "sampling.max_tokens=4",
                "pipeline.groups_per_step=2", "pipeline.max_staleness=0", "pipeline.equal_rewards=keep",
                "checkpoint.every=2", "checkpoint.keep=1", "evaluation.num_prompts=2", "evaluation.every=2",
                "telemetry.tensorboard=false", "telemetry.samples_every=1", *overrides,
            ],
        )
    )  # fmt: skip


def run(runs: Path, policy: Path, *overrides: str, build: Build | None = None) -> Path:
    """Do what the command does, on fakes."""
    spec = spec_in(runs, policy, *overrides)
    console = Console(quiet=True)
    with held(spec, lambda text: None) as folder:
        recorder = Recorder(settings.recorder_settings(spec, str(policy)), console, spec.tokenizer(str(policy)))

        async def hashing(spec: RunSpec, model_path: str, events: Events) -> FakeComponents:
            return Hashing(policy, str(spec.config.learner.lr))

        asyncio.run(train(folder, str(policy), build or hashing, recorder, Signals()))  # pyright: ignore - of Components
    return spec.run_dir


def committed(folder: Path) -> dict[int, str]:
    if not (folder / "ledger.sqlite").is_file():
        return {}
    with read_ledger(folder) as ledger:
        if ledger.execute("SELECT 1 FROM sqlite_master WHERE name = 'commits'").fetchone() is None:
            return {}
        return dict(ledger.execute("SELECT step, digest FROM commits").fetchall())


def check_whole(folder: Path) -> None:
    """Check what is known of every step, once and in order."""
    assert not audit(folder).violations
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, STEPS + 1))
    samples = sorted((folder / "samples").iterdir())
    assert [set(pq.read_table(path)["step"].to_pylist()) for path in samples] == [{n} for n in range(1, STEPS + 1)]
    assert set(json.loads((folder / "evaluations.json").read_text())) == {"0", "2", "4", str(STEPS)}
    assert list_checkpoints(folder / "checkpoints")[-1].name == f"step_{STEPS:06d}"
    assert not list(folder.rglob(".partial-*"))


def resume_log(folder: Path) -> list[str]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [text for line in lines if (text := json.loads(line)["text"]).startswith("resumed after")]


def resumed_from(moments: Moments, numbers: Sequence[int], policy: Path, expected: dict[int, str]) -> None:
    """Resume what a kill and what a power cut leaves at some moments, and compare it with the run that had neither."""
    for number in numbers:
        for runs in (moments.after_kill(number), moments.after_power_cut(number)):
            about = f"{runs.name} before {number}: {moments.names[number]}"
            before = committed(runs / "cut")
            told = len(resume_log(runs / "cut")) if (runs / "cut" / "log.jsonl").is_file() else 0
            folder = run(runs, policy)
            check_whole(folder)
            assert committed(folder) == expected, about
            if before and set(before.items()) <= set(expected.items()):  # no step that was committed is made again
                said = (folder / "log.jsonl").read_text()
                assert resume_log(folder)[told:] == [f"resumed after step {max(before)}"], f"{about}\n{said}"
            shutil.rmtree(runs)


def some(moments: Moments, count: int) -> list[int]:
    numbers = range(len(moments.names))
    return sorted(random.Random(0).sample(numbers, min(count, len(numbers))))


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, pytest.param(10**6, marks=[pytest.mark.long, pytest.mark.timeout(3000)])])
def test_a_run_that_is_cut_off_anywhere_is_resumed_as_if_it_was_not(
    count: int, tmp_path: Path, tiny_policy: Path
) -> None:
    moments = Moments(tmp_path / "runs", tmp_path / "copies")
    (tmp_path / "runs").mkdir()
    with moments.watched():
        folder = run(tmp_path / "runs", tiny_policy)
    check_whole(folder)
    assert len(moments.names) > 100
    resumed_from(moments, some(moments, count), tiny_policy, committed(folder))


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, pytest.param(10**6, marks=[pytest.mark.long, pytest.mark.timeout(3000)])])
@pytest.mark.parametrize("saved", ["with a checkpoint", "without"])
def test_a_resume_with_another_setting_is_cut_off_anywhere(
    saved: str, count: int, tmp_path: Path, tiny_policy: Path
) -> None:
    """The record of the new setting is written once the steps made with the old one are dropped."""
    every = f"checkpoint.every={2 if saved == 'with a checkpoint' else 50}"
    first = Moments(tmp_path / "runs", tmp_path / "first")
    (tmp_path / "runs").mkdir()
    with first.watched():
        run(tmp_path / "runs", tiny_policy, every)
    third = next(n for n, _ in enumerate(first.names) if len(committed(first.after_kill(n) / "cut")) == 3)
    killed = first.after_kill(third)
    control = tmp_path / "control"
    shutil.copytree(killed, control)
    expected = committed(run(control, tiny_policy, every, "learner.lr=5e-5"))
    moments = Moments(killed, tmp_path / "copies")
    with moments.watched():
        run(killed, tiny_policy, every, "learner.lr=5e-5")
    # the moments at which settings and ledger are written, and some of those that follow
    decided = next(n for n, name in enumerate(moments.names) if "metrics.jsonl" in name)
    for number in sorted({*range(0, decided, 2), *some(moments, count)}):
        runs = moments.after_kill(number)
        folder = run(runs, tiny_policy, every, "learner.lr=5e-5")
        check_whole(folder)
        assert committed(folder) == expected, moments.names[number]
        shutil.rmtree(runs)


def test_a_start_for_which_there_is_no_room_does_not_block_the_name(tmp_path: Path, tiny_policy: Path) -> None:
    for _ in range(2):
        with pytest.raises(NoRoom):
            run(tmp_path, tiny_policy, "run.resume=never", build=no_room)
    folder = run(tmp_path, tiny_policy, "run.resume=never")
    check_whole(folder)
    with pytest.raises(ConfigError, match="exists and is not empty"):
        run(tmp_path, tiny_policy, "run.resume=never")


def test_the_loop_goes_on_while_the_report_is_drawn(
    tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing, answered = threading.Event(), threading.Event()

    def draw(folder: Path) -> None:
        drawing.set()
        assert answered.wait(10)

    async def answer() -> None:
        while not drawing.is_set():
            await asyncio.sleep(0.01)
        answered.set()

    async def build(spec: RunSpec, model_path: str, events: Events) -> FakeComponents:
        answering.append(asyncio.create_task(answer()))
        return Hashing(tiny_policy, "")

    answering: list[asyncio.Task[None]] = []
    monkeypatch.setattr("lpo_ray.run.recorder.write_report", draw)
    check_whole(run(tmp_path, tiny_policy, build=build))
    assert answered.is_set()


def test_a_run_waits_for_disks_and_databases_in_threads_only(
    tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first sample to its last step; and what was there before that is not looked at for garbage."""
    loop, found, calls, frozen = threading.get_ident(), [], [], []

    class Watched(Hashing):
        begun = False

        async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
            self.begun = True
            return await super().sample(prompt, sampling, attempt)

        async def project(self, batch: TrainBatch) -> StepReport:
            frozen.append(gc.get_freeze_count())
            return await super().project(batch)

        async def close(self) -> None:
            self.begun = False

    parts = Watched(tiny_policy, "")

    async def build(spec: RunSpec, model_path: str, events: Events) -> FakeComponents:
        return parts

    def watched(real: Callable[..., object], name: Callable[..., str]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            calls.append(name(*arguments))
            if parts.begun and threading.get_ident() == loop:
                found.append(calls[-1])
            return real(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", watched(os.fsync, shown))
    monkeypatch.setattr(Database, "execute", watched(Database.execute, lambda db, sql, *_: f"{db.path.name}: {sql}"))
    check_whole(run(tmp_path, tiny_policy, build=build))
    assert len(calls) > 100
    assert found == []
    assert min(frozen) > 10_000
    assert gc.get_freeze_count() == 0


async def no_room(spec: RunSpec, model_path: str, events: Events) -> FakeComponents:
    raise NoRoom("the learner needs 9 GPUs")


async def test_a_driver_whose_folder_was_taken_commits_nothing_more(tmp_path: Path, tiny_policy: Path) -> None:
    spec = spec_in(tmp_path, tiny_policy)
    with held(spec, lambda text: None) as folder:
        recorder = Recorder(
            settings.recorder_settings(spec, str(tiny_policy)), Console(quiet=True), spec.tokenizer(str(tiny_policy))
        )

        class Suspended(Hashing):
            async def project(self, batch: TrainBatch) -> StepReport:
                if batch.step == 2:
                    lock = spec.run_dir / ".lock"
                    record = json.loads(lock.read_bytes())
                    lock.write_text(json.dumps({**record, "token": "another"}))
                return await super().project(batch)

        async def build(spec: RunSpec, model_path: str, events: Events) -> FakeComponents:
            return Suspended(tiny_policy, "")

        with pytest.RaisesGroup(RunBusy, flatten_subgroups=True):
            await train(folder, str(tiny_policy), build, recorder, Signals())  # pyright: ignore - of Components
    assert list(committed(spec.run_dir)) == [1, 2]
    assert not (spec.run_dir / "summary.json").exists()
