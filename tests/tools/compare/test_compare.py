"""``lpo-ray compare`` as a user meets it: begun, killed, gone on with, with a run that fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lpo_ray.cli.compare import compare_command
from lpo_ray.errors import ConfigError

CONFIG = str(Path(__file__).parents[3] / "configs" / "compare_countdown.yaml")
ARMS = ("forward_kl", "first_order_beta", "first_order")


def command(out: Path, policy: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "lpo_ray", "compare", CONFIG, "--out", str(out), "--seeds", "2", "--parallel", "1",
        "--grid", "objective.target_temperature=one", f"model.path={policy}", "run.steps=2",
        "pipeline.groups_per_step=4", "sampling.group_size=4", "sampling.max_tokens=8", "evaluation.num_prompts=3",
        "evaluation.samples_per_prompt=4", "evaluation.ks=[1,4]", "evaluation.every=1",
        "task.verifier=tests.support.e2e_verifiers:digits", *more,
    ]  # fmt: skip


def compare(out: Path, policy: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, policy, *more), capture_output=True, text=True, timeout=1200, check=False)


def names() -> list[str]:
    return [f"{arm}-seed{seed}" for seed in (0, 1) for arm in ARMS]


def finished(out: Path) -> dict[str, float]:
    """Name -> when."""
    return {path.parent.name: path.stat().st_mtime for path in out.glob("runs/*/summary.json")}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("objective.token_clip.kind=clamp,clam", "objective.token_clip.kind is 'clam'"),
        ("objective.schedule=[{from_step: 1, divergence: reverse_kl}]", "changes the divergence, after which an arm"),
        ("evaluation.num_prompts=0", "evaluation.num_prompts is 0; expected the number of held-out prompts"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(more: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        compare_command(Path(CONFIG), [more], 2, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_gone_on_with_and_one_that_fails(tmp_path: Path, tiny_policy: Path) -> None:
    out = tmp_path / "out"
    first = subprocess.Popen(command(out, tiny_policy), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: finished(out) and (out / "runs" / names()[1] / "metrics.jsonl").exists())
        refused = compare(out, tiny_policy)
        assert refused.returncode == 2
        assert "is being worked on by another lpo-ray compare" in refused.stderr
        children = psutil.Process(first.pid).children(recursive=True)
    finally:
        first.kill()
        first.wait()
    assert children
    wait_until(lambda: not any(child.is_running() for child in children))
    before = finished(out)
    assert len(before) < len(names())

    second = compare(out, tiny_policy)
    assert second.returncode == 0, second.stderr
    assert f"6 runs, {len(before)} of them finished before, 1 at once" in second.stdout
    after = finished(out)
    assert sorted(after) == sorted(names())
    assert before == {name: after[name] for name in before}  # what had finished was not run again
    assert "the same: clamp 0.2/0.2" in second.stdout
    stored = json.loads((out / "comparison.json").read_text())
    assert [(arm["divergence"], arm["seeds"]) for arm in stored["arms"]] == [(arm, 2) for arm in ARMS]
    assert "groups trained in a run: 8" in stored["conditions"]
    assert stored["conditions"][-1].endswith("the same in all arms for 2 of 2 seeds")
    assert {part["meaning"].split(":")[0] for part in stored["parts"]} == {"weighting", "projection"}

    refused = compare(out, tiny_policy, "learner.lr=1e-3")
    assert refused.returncode == 2
    assert "was begun with learner.lr=0.0001, now it is 0.001" in refused.stderr

    lost = out / "runs" / names()[4]
    (lost / "summary.json").unlink()
    (lost / "ledger.sqlite").write_bytes(b"not a ledger" * 1000)
    third = compare(out, tiny_policy)
    assert third.returncode == 1
    assert f"1 of 6 runs failed: {lost.name}" in third.stderr
    assert "file is not a database" in third.stdout
    stored = json.loads((out / "comparison.json").read_text())
    assert [arm["seeds"] for arm in stored["arms"]] == [2, 1, 2]


def wait_until(condition: object, seconds: float = 600) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.05)
