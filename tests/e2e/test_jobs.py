"""A head, and the command line against it from another folder: submit, list, status, logs, scale, why, stop."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lpo_ray.telemetry.sinks import MetricsLog
from lpo_ray.training.ledger_audit import audit
from tests.support.ray_heads import Head, ray_head

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(500)]
QUICKSTART = str(Path(__file__).parent.parent.parent / "configs" / "quickstart.yaml")
SMALL = ("pipeline.groups_per_step=8", "sampling.group_size=4", "evaluation.num_prompts=0", "learner.world_size=1",
         "rollout.kv_cache_gib=0.2", "checkpoint.every=5")  # fmt: skip


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("head")) as found:
        yield found


@pytest.fixture
def lpo_ray(head: Head, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, from a folder that is not the repository's."""

    def run(*arguments: str, address: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lpo_ray", *arguments, "--address", address or head.address], cwd=tmp_path,
            env={**head.environment, **environment}, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip

    return run


def wait_for(what: Callable[[], bool], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def steps(folder: Path) -> int:
    return len(MetricsLog(folder / "metrics.jsonl").read())


def states(folder: Path) -> list[str]:
    """States of the rollout workers."""
    workers = json.loads((folder / "status.json").read_text())["workers"]
    return [worker["state"] for worker in workers.values()]


def test_a_run_is_submitted_scaled_asked_and_stopped(lpo_ray, tmp_path: Path, tiny_policy: Path) -> None:
    run, folder = "from-elsewhere", tmp_path / "runs" / "from-elsewhere"
    done = lpo_ray("submit", QUICKSTART, f"run.name={run}", f"model.path={tiny_policy}", "run.steps=2000", *SMALL)
    assert done.returncode == 0, done.stderr
    assert f"{run} is job {run}-" in done.stdout
    assert f"its folder there: {folder}" in done.stdout
    wait_for(lambda: steps(folder) >= 2)

    again = lpo_ray("submit", QUICKSTART, f"run.name={run}", "run.steps=2", *SMALL)
    assert again.returncode == 2
    assert f"run {run} is active as job {run}-" in again.stderr
    assert "expected a name that is free" in again.stderr

    listed = lpo_ray("list")
    assert run in listed.stdout
    assert "RUNNING" in listed.stdout

    scaled = lpo_ray("scale", run, "rollout=2")
    assert scaled.returncode == 0, scaled.stderr
    assert scaled.stdout == "2 rollout workers: rollout worker 1 joining\n"

    def wait_until_serving(count: int) -> None:
        wait_for(lambda: states(folder) == ["serving"] * count)  # asking costs seconds of CPU time, each time
        shown = lpo_ray("status", run)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.count("serving") == count and "leaving" not in shown.stdout

    wait_until_serving(2)
    before = steps(folder)
    wait_for(lambda: steps(folder) > before)
    assert lpo_ray("scale", run, "rollout=1").stdout == "1 rollout workers: rollout worker 1 leaving\n"
    wait_until_serving(1)
    assert lpo_ray("scale", run, "verifier=3").stdout == "3 verifier processes\n"
    before = steps(folder)
    wait_for(lambda: steps(folder) > before)

    why = lpo_ray("why", run)
    assert why.returncode == 0, why.stderr
    assert f"{run}: running, step " in why.stdout
    wrong = lpo_ray("scale", run, "learner=3")
    assert wrong.returncode == 2
    assert "expected rollout=N or verifier=N: other roles have a fixed number" in wrong.stderr

    said = lpo_ray("logs", run).stdout
    assert re.search(r"driver - \d+ rollout worker 1 (serves \d+:|is up, and takes the next weights)", said)
    assert re.search(r"info rollout rollout-worker-1 \d+ its engine is up on ", said)
    assert "rollout worker 1 has left" in said

    stopped = lpo_ray("stop", run)
    assert stopped.returncode == 0, stopped.stderr
    assert f"{run} has ended: STOPPED" in stopped.stdout
    assert "stopped by signal 15 after step" in lpo_ray("logs", run).stdout
    books = audit(folder)
    assert books.violations == ()
    assert books.steps == steps(folder)
    assert (folder / "summary.json").exists()
    asked = lpo_ray("status", run)
    assert asked.returncode == 2
    assert f"run {run} has ended (STOPPED" in asked.stderr


def test_what_is_wrong_is_said_in_one_line(lpo_ray, tmp_path: Path, head: Head) -> None:
    def one_line(done: subprocess.CompletedProcess[str], *expected: str) -> None:
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        for text in expected:
            assert text in done.stderr

    small = [QUICKSTART, "run.steps=2", *SMALL]
    nowhere = "http://127.0.0.1:9"
    one_line(
        lpo_ray("submit", *small, address=nowhere), f"{nowhere} cannot be reached", "Expected the address of the head"
    )
    one_line(lpo_ray("submit", *small, address="head:8265"), "--address is 'head:8265'", "http://HEAD:8265")
    other = tmp_path / "other-token"
    other.write_text("0" * 32)
    one_line(lpo_ray("list", RAY_AUTH_TOKEN_PATH=str(other)), "refused the token", "RAY_AUTH_TOKEN_PATH")
    one_line(lpo_ray("submit", *small, "rollout.num_workers=0"), "rollout.num_workers is 0")
    one_line(lpo_ray("status", "nobody"), "no run named nobody was submitted")
    one_line(lpo_ray("scale", "nobody", "rollout=many"), "does not say how many")
    one_line(lpo_ray("submit", *small, "--working-dir", str(tmp_path / "nothing")), "is not a folder")


def test_a_cluster_without_the_resources_says_which_bundle_lacks_what(lpo_ray, tiny_policy: Path) -> None:
    more = ("rollout.num_workers=2", "rollout.cpus_per_worker=6", f"model.path={tiny_policy}", "run.name=too-large")
    done = lpo_ray("submit", QUICKSTART, "run.steps=2", *SMALL, *more, "--follow")
    assert done.returncode == 1
    assert "NoRoom: the cluster has no room: rollout asks for 2 x (6 CPU); bundle 1 fits on no node: " in done.stdout
    assert "has 1 of 6 CPU left" in done.stdout
    assert "Traceback" not in done.stdout
