"""launch/slurm.sbatch on a real Slurm of two nodes: time limit, requeue, cancel, labels, exit codes. What is Slurm's
alone is tried with stand-ins for Ray and lpo-ray.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lpo_ray.telemetry.sinks import MetricsLog
from tests.launch.tools import Tools
from tests.support.namespaces import wait_until
from tests.support.slurm import Slurm, slurm

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"
NODES = {"n1": "10.198.0.11", "n2": "10.198.0.12"}
OPTIONS = ("--nodes=2", "--gpus-per-node=0", "--time=60", "--signal=B:USR1@170")
NODE_SECONDS = 4321
SMALL = (
    "pipeline.groups_per_step=8", "sampling.group_size=4", "evaluation.num_prompts=0", "learner.world_size=1",
    "rollout.kv_cache_gib=0.2", "verifier.num_processes=1", "checkpoint.every=1000",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: Ray's and munge's sockets lie in it
    environment = {"PYTHONPATH": str(ROOT), "STOP_SECONDS": "120", "RAY_USAGE_STATS_ENABLED": "0"}
    if cache := os.environ.get("LPO_RAY_CACHE"):
        environment["LPO_RAY_CACHE"] = cache
    try:
        with slurm(folder, NODES, environment) as found:
            if isinstance(found, str):
                pytest.skip(found)
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def jobs_end_with_their_test(cluster: Slurm) -> Iterator[None]:
    """One that fails leaves no job on the nodes of the next."""
    yield
    cluster.machine.run("scancel", "--state=RUNNING,PENDING", f"--user={os.getuid()}")
    wait_until("an empty queue", lambda: not cluster.machine.run("squeue", "--noheader").stdout.strip(), 90)


def submit(cluster: Slurm, policy: Path, name: str, steps: int, *more: str) -> int:
    overrides = [f"run.name={name}", f"run.dir={cluster.folder}/runs", f"run.steps={steps}", f"model.path={policy}"]
    config = str(ROOT / "configs" / "quickstart.yaml")
    return cluster.sbatch(SCRIPT, config, *overrides, *SMALL, *more, options=OPTIONS)


def steps(folder: Path) -> int:
    return len(MetricsLog(folder / "metrics.jsonl").read())


def ray_processes(cluster: Slurm) -> list[str]:
    said = cluster.machine.run("sh", "-c", "cat /proc/[0-9]*/comm")
    return [name for name in said.stdout.split() if name in ("raylet", "gcs_server")]


@pytest.fixture
def stand_ins(cluster: Slurm) -> Path:
    """A folder to submit in, whose Ray starts nothing, and whose run does what the file "then" says."""
    folder = Path(tempfile.mkdtemp(dir=cluster.folder))
    tools = Tools.make(folder / ".venv")
    tools.add("ray", f'echo "Ray runtime started."\nexec sleep {NODE_SECONDS}')
    submit = 'echo "mine is job x of http://127.0.0.1:8265; its folder there: /runs/x"; exit'
    tools.add("lpo-ray", f'[[ "$1" != submit ]] || {{ {submit}; }}\ntouch "{folder}/$1"\n. "{folder}/then"')
    (folder / "config.yaml").write_text("run: {name: mine}\n")
    return folder


def nodes_left(cluster: Slurm) -> int:
    said = cluster.machine.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    return said.stdout.count(f"sleep {NODE_SECONDS}")


@pytest.mark.parametrize(("status", "state"), [(0, "COMPLETED"), (3, "FAILED")])
def test_a_job_ends_as_its_run_does(cluster: Slurm, stand_ins: Path, status: int, state: str) -> None:
    (stand_ins / "then").write_text(f"exit {status}\n")
    job = cluster.sbatch(SCRIPT, "config.yaml", options=OPTIONS, submitted_in=stand_ins)
    ended = cluster.wait_for(job, {"COMPLETED", "FAILED"}, 90)
    assert (ended["JobState"], ended["ExitCode"]) == (state, f"{status}:0"), cluster.output(job)
    wait_until("the end of its nodes", lambda: nodes_left(cluster) == 0, 30)
    assert not (stand_ins / f".lpo-ray-{job}" / "token").exists()


def test_a_job_that_is_cancelled_leaves_nothing_and_is_not_queued_again(cluster: Slurm, stand_ins: Path) -> None:
    (stand_ins / "then").write_text("exec sleep 300\n")
    job = cluster.sbatch(SCRIPT, "config.yaml", options=OPTIONS, submitted_in=stand_ins)
    wait_until("the run", (stand_ins / "logs").exists, 90)
    assert nodes_left(cluster) > 0
    assert cluster.machine.run("scancel", str(job)).returncode == 0
    ended = cluster.wait_for(job, {"CANCELLED"}, 90)
    assert ended["Restarts"] == "0"
    wait_until("the end of its nodes", lambda: nodes_left(cluster) == 0, 60)


def test_a_run_that_ignores_its_stop_is_queued_again_all_the_same(cluster: Slurm, stand_ins: Path) -> None:
    (stand_ins / "then").write_text("exec sleep 300\n")
    (stand_ins / "again").write_text("exit 0\n")
    options = (*OPTIONS[:2], "--time=3", "--signal=B:USR1@170", "--export=ALL,STOP_SECONDS=5")
    job = cluster.sbatch(SCRIPT, "config.yaml", options=options, submitted_in=stand_ins)
    wait_until("Slurm's signal", (stand_ins / "stop").exists, 150)
    (stand_ins / "again").rename(stand_ins / "then")
    ended = cluster.wait_for(job, {"COMPLETED", "FAILED"}, 150)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), cluster.output(job)
    assert "mine did not end within 5 s; it goes on from its last checkpoint" in cluster.output(job)


def test_a_run_lasts_longer_than_its_jobs(cluster: Slurm, tiny_policy: Path) -> None:
    run = cluster.folder / "runs" / "limited"
    job = submit(cluster, tiny_policy, "limited", 5000)
    cluster.wait_for(job, {"RUNNING"}, 30)
    token = cluster.folder / f".lpo-ray-{job}" / "token"

    def begun() -> bool:
        return steps(run) >= 3 or cluster.job(job)["JobState"] != "RUNNING"

    cluster.wait_until("three steps", job, begun, 240)
    assert cluster.job(job)["JobState"] == "RUNNING", cluster.output(job)
    assert token.stat().st_mode & 0o777 == 0o600

    # Slurm's own signal: the limit comes near
    hours, minutes, _ = map(int, cluster.job(job)["RunTime"].split(":"))
    limit = f"TimeLimit={hours * 60 + minutes + 3}"
    assert cluster.machine.run("scontrol", "update", f"JobId={job}", limit).returncode == 0
    cluster.wait_until("queued again", job, lambda: cluster.job(job)["Restarts"] == "1", 240)
    saved = steps(run)
    said = cluster.output(job)
    assert "slurm.sbatch: the time limit is near; limited ends its update and writes a checkpoint" in said
    assert "limited has ended: STOPPED" in said
    assert (run / "checkpoints" / f"step_{saved:06d}").is_dir()
    assert not token.exists()

    # it goes on where it was, on the nodes of its roles
    cluster.machine.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    cluster.wait_until("the resume", job, lambda: f"resumed after step {saved}" in cluster.output(job), 240)
    cluster.wait_until("steps after it", job, lambda: steps(run) > saved, 120)
    cluster.wait_until("the log of that", job, lambda: f"step {saved + 1}/" in cluster.output(job), 120)
    roles = {"learner learner-rank-0": "n1", "rollout rollout-worker-0": "n2"}
    for role, node in roles.items():
        placed = re.findall(rf"info {role} \d+ .*is up on ([\d.]+)", cluster.output(job))
        assert placed == [NODES[node]] * 2, cluster.output(job)
    assert cluster.machine.run("scancel", str(job)).returncode == 0
    cluster.wait_for(job, {"CANCELLED"}, 90)
    wait_until("the end of Ray", lambda: not ray_processes(cluster), 60)

    # another job of the same command brings it to its end
    last = steps(run) + 2
    final = submit(cluster, tiny_policy, "limited", last)
    ended = cluster.wait_for(final, {"COMPLETED", "FAILED"}, 300)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), cluster.output(final)
    assert steps(run) == last
    assert ray_processes(cluster) == []


def test_a_run_that_fails_is_a_job_that_fails(cluster: Slurm, tiny_policy: Path) -> None:
    job = submit(cluster, tiny_policy, "too-large", 2, "rollout.cpus_per_worker=6")
    ended = cluster.wait_for(job, {"FAILED", "COMPLETED"}, 240)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0"), cluster.output(job)
    assert "NoRoom: the cluster has no room: rollout asks for 1 x (6 CPU)" in cluster.output(job)
    wait_until("the end of Ray", lambda: not ray_processes(cluster), 60)
