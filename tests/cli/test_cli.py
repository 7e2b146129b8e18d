"""The command line as a user meets it: messages on standard error, exit codes, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lpo_ray.telemetry.log import read_log
from lpo_ray.telemetry.trackers import TrackedRun, Tracker
from tests.support.commands import QUICKSTART, lpo_ray
from tests.support.pages import ROOT


def test_a_bad_config_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    finished = lpo_ray("train", QUICKSTART, f"run.dir={tmp_path}/runs", "run.sede=1")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr == "ConfigError: override 'run.sede=1': unknown key 'run.sede'; did you mean run.seed?\n"
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_the_config_and_every_number_and_writes_nothing(tmp_path: Path) -> None:
    finished = lpo_ray(
        "train", QUICKSTART, "--dry-run", f"run.dir={tmp_path}/runs", "run.seed=7", "rollout.silence_seconds=0.001"
    )
    assert finished.returncode == 0, finished.stderr
    assert "seed: 7" in finished.stdout
    (warning,) = [line for line in finished.stdout.splitlines() if line.startswith("Warning")]
    assert warning.startswith(
        "Warning: rollout.silence_seconds leaves 0.001 s for the longest step of an engine, which"
    )
    assert "responses per step" in finished.stdout
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_an_existing_run_prints_the_numbers_and_what_train_would_do(tmp_path: Path) -> None:
    folder = tmp_path / "quickstart"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("{}")
    finished = lpo_ray("train", QUICKSTART, "--dry-run", f"run.dir={tmp_path}")
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"^algorithm +LPO, forward KL; tau group_std \(GRPO's\)$", finished.stdout, re.MULTILINE)
    assert "responses per step" in finished.stdout
    assert (
        f"\ntrain would refuse: run folder {folder} exists and is not empty; take another run.name" in finished.stdout
    )
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("entry", ["from lpo_ray.cli.app import main; main()", None])
def test_modules_of_the_working_folder_are_found(tmp_path: Path, entry: str | None) -> None:
    """``-P`` leaves the working folder out, as the console script does."""
    (tmp_path / "my_rewards").mkdir()
    (tmp_path / "my_rewards" / "short.py").write_text(
        "def short(response: str) -> float:\n    return float(len(response) < 9)\n"
    )
    command = [sys.executable, "-P", "-c", entry] if entry else [sys.executable, "-m", "lpo_ray"]
    finished = subprocess.run(
        [*command, "train", str(ROOT / QUICKSTART), "--dry-run", "task.verifier=my_rewards.short:short"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "my_rewards.short:short" in finished.stdout


def broken_tracker(run: TrackedRun) -> Tracker:
    raise RuntimeError(f"no such server for {run.name}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_in_one_process_then_resume_export_and_evaluate(tiny_policy: Path, tmp_path: Path) -> None:
    common = (
        f"run.dir={tmp_path}", "run.name=one", "cluster.kind=inprocess", "learner.world_size=1",
        f"model.path={tiny_policy}", "pipeline.groups_per_step=4", "evaluation.num_prompts=3",
        "evaluation.samples_per_prompt=4", "evaluation.ks=[1,4]", "sampling.max_tokens=8", "checkpoint.every=1",
    )  # fmt: skip
    first = lpo_ray(
        "train", QUICKSTART, *common, "run.steps=2", "telemetry.trackers=['tests.cli.test_cli:broken_tracker']"
    )
    assert first.returncode == 0, first.stderr
    assert re.search(r"^\d\d:\d\d:\d\d info driver - 2 step 2/2  reward ", first.stdout, re.MULTILINE)
    assert (
        first.stdout.count("tests.cli.test_cli:broken_tracker is off from here on: RuntimeError: no such server") == 1
    )
    assert "pass@1" in first.stdout
    folder = tmp_path / "one"
    again = lpo_ray("train", QUICKSTART, *common, "run.steps=4")
    assert again.returncode == 2
    assert "continue it with run.resume=auto" in again.stderr
    resumed = lpo_ray("train", QUICKSTART, *common, "run.steps=4", "run.resume=auto")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after step 2" in resumed.stdout
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    told = list(read_log(folder / "log.jsonl"))
    assert [line.step for line in told if line.text.startswith("step ")] == [1, 2, 3, 4]
    assert sum(line.text.startswith("evaluation after step ") for line in told) == 3
    assert {(line.level, line.role) for line in told if not line.source} == {("info", "driver")}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["groups"] == {"issued": 16, "trained": 16, "lost": 0, "stale": 0, "filtered": 0}
    assert summary["evaluation"]["before"]["num_prompts"] == summary["evaluation"]["after"]["num_prompts"] == 3
    replayed = lpo_ray("replay", str(folder), "--step", "4")
    assert replayed.returncode == 0, replayed.stderr
    assert f"step 4 of {folder}, replayed from step_000003: weights " in replayed.stdout
    assert replayed.stdout.endswith(", equal\n")
    assert replayed.stdout.count("\n") == 1
    exported = lpo_ray("export", str(folder), str(tmp_path / "policy"))
    assert exported.returncode == 0, exported.stderr
    assert "step 4" in exported.stdout
    card = (tmp_path / "policy" / "README.md").read_text()
    assert "| after step | pass@1 (95 % interval) | pass@4 (95 % interval) | held-out prompts |" in card
    assert "\n| 4 | 0." in card
    assert "divergence: forward_kl" in card
    refused = lpo_ray("export", str(folder), str(tmp_path / "policy"))
    assert refused.returncode == 2
    evaluated = lpo_ray("evaluate", str(folder), "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads(evaluated.stdout)
    assert result["num_prompts"] == 3
    assert set(result["ci95"]) > {"pass@1", "pass@2", "pass@3", "pass@4", "avg@4", "maj@4"}
    assert json.loads((folder / "evaluations" / "step_000004" / "results.json").read_text()) == result
    assert result["pass@4"] == summary["evaluation"]["after"]["pass@4"]


def test_an_unknown_transport_is_refused_before_anything_starts(tiny_policy: Path, tmp_path: Path) -> None:
    finished = lpo_ray("train", QUICKSTART, f"run.dir={tmp_path}", f"model.path={tiny_policy}", "transport.kind=pigeon")
    assert finished.returncode == 2
    assert (
        "transport.kind is 'pigeon'; expected one of cuda_ipc, gloo, nccl, object_store, shared_memory"
        in finished.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_export_of_a_run_without_checkpoint(tmp_path: Path) -> None:
    finished = lpo_ray("export", str(tmp_path), str(tmp_path / "policy"))
    assert finished.returncode == 2
    assert "has no checkpoint" in finished.stderr
