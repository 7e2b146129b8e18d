"""What a step of many long responses costs the driver: the real loop, ledger, recorder, target builder, rollout pool,
verifier client and learner group on real Ray. Engines, verifier, ranks and transport are stand-ins that do no
arithmetic.

PYTHONPATH=. .venv/bin/python tests/benchmarks/dataplane.py OUT.json [--trees before=DIR,after=.] [--groups 256]
    [--responses 16] [--tokens 32768] [--steps 2] [--ranks 2] [section.key=value ...]

Each tree is a checkout; they run one after the other, each in a process of its own, which is watched from here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from inspect import signature
from pathlib import Path
from typing import Any

import psutil
from loop_stalls import Beats, Looker, Stall

SHOWN = 0.05
"""seconds of a stall that counts in the sum of all"""
MIB = 2**20
STAGES = ("sample", "verify", "anchor", "project", "publish", "wait")


def driver(arguments: argparse.Namespace) -> dict[str, object]:
    """Train in this process, on a Ray cluster of its own."""
    import numpy as np
    import ray
    from ray._private.internal_api import node_stats
    from rich.console import Console

    from actors import roles
    from actors.cluster import connect, disconnect
    from actors.learner import group as learner_group
    from actors.learner.group import PROGRESS, Formation, LearnerGroup, LearnerRules
    from actors.learner.worker import LearnerWorker
    from actors.roles import remote_target_builder
    from actors.runtime.inspection import current_process
    from actors.runtime.remote_calls import call
    from actors.verifier.remote import RemoteVerifier
    from lpo_ray.common.silence import Progress
    from lpo_ray.config import load_config
    from lpo_ray.records import (
        AnchorGroup,
        AnchorPiece,
        ProjectedGroup,
        PromptGroup,
        Publication,
        Response,
        StepNorms,
        UpdateReport,
        WeightsVersion,
    )
    from lpo_ray.rollout.pool import RolloutPool
    from lpo_ray.rollout.rewards import Scores
    from lpo_ray.run import settings
    from lpo_ray.run.folder import held
    from lpo_ray.run.recorder import Recorder
    from lpo_ray.run.signals import Signals
    from lpo_ray.run.spec import build_model, make_spec, outline
    from lpo_ray.run.train import train

    class Engine:
        """An engine that draws tokens at random."""

        def start(self) -> Any:
            self.version, self.sampled = 0, 0
            return current_process()

        def set_version(self, version: int) -> None:
            self.version = version

        def sample(self, prompt: Any, sampling: Any, attempt: int) -> Any:
            rng = np.random.default_rng(self.sampled)
            self.sampled += 1
            size = sampling.max_tokens
            responses = tuple(
                Response(
                    rng.integers(4, 40, size), rng.random(size, dtype=np.float32), np.full(size, self.version), "stop"
                )
                for _ in range(sampling.group_size)
            )
            return PromptGroup(prompt, attempt, responses)

        def progress(self) -> Any:
            return Progress(time.time())

        def close(self) -> None:
            pass

    class Worker:
        """An engine as the pool holds it."""

        def __init__(self, index: int, name: str) -> None:
            self.name = name
            self.handle = ray.remote(Engine).options(num_cpus=0.1, max_concurrency=4).remote()

        async def start(self, seconds: float) -> Any:
            return await call(self.handle.start.remote(), who=self.name, what="start", seconds=seconds)

        async def sample(self, prompt: Any, sampling: Any, attempt: int) -> Any:
            return await call(self.handle.sample.remote(prompt, sampling, attempt), who=self.name, what="sample")

        async def progress(self) -> Any:
            return Progress(time.time())

        async def close(self, seconds: float) -> None:
            self.kill()

        async def inspect(self) -> str:
            return ""

        def kill(self) -> None:
            ray.kill(self.handle)

    class Parts:
        """The five components."""

        def __init__(self, rollout: Any, verifier: Any, target_builder: Any, learner: Any, transport: Any) -> None:
            self.rollout, self.verifier, self.target_builder = rollout, verifier, target_builder
            self.learner, self.transport = learner, transport

        def lend(self) -> None:
            pass

        def busy(self, stage: str) -> list[Any]:
            return []

        def silence_of(self, key: Any) -> float:
            return 0.0

        async def inspect(self, process: Any) -> str:
            return ""

        async def scale(self, role: str, count: int) -> str:
            return ""

        async def close(self) -> None:
            await asyncio.gather(self.rollout.close(), self.learner.close())

    class Service:
        """A verifier service that says right to every other response."""

        def start(self) -> Any:
            return current_process()

        def score(self, group: Any) -> Any:
            size = len(group.responses)
            rewards = (np.arange(size) % 2).astype(np.float32)
            return Scores(rewards, ("",) * size, np.zeros(size, np.float32))

        def progress(self) -> Any:
            return Progress(time.time())

        def effort(self) -> float:
            return time.time()

        def close(self) -> None:
            pass

    class Rank(LearnerWorker):
        """A rank that reads its share once, and learns nothing."""

        def address(self) -> tuple[str, int]:
            return "127.0.0.1", 1

        def start(self, host: str, port: int, seconds: float) -> Any:
            return current_process()

        def _mine(self, micro_batches: Any) -> list[Any]:
            """Pieces of the micro-batches, each token of which is read."""
            found = [piece for micro_batch in micro_batches for piece in micro_batch.pieces]
            for piece in found:
                for number in piece.responses:
                    response = piece.item.group.responses[number]
                    self._done += int(response.token_ids.sum() + response.behaviour_logprobs.sum())
            return found

        def log_ratios(self, shares: Any) -> Any:
            whole = bool(shares) and isinstance(shares[0], tuple | list)  # every rank's share, or mine
            found = []
            for piece in self._mine(shares[self._rank] if whole else shares):
                zeros = np.zeros(len(piece.responses), np.float32)
                found.append(AnchorPiece(piece.item.group.key, piece.responses, AnchorGroup(zeros, zeros, zeros)))
            return found

        def project(self, batch: Any) -> Any:
            reports = []
            for number, update in enumerate(batch.updates):
                groups = []
                for piece in self._mine(update.shares[self._rank]):
                    values = dict.fromkeys(ProjectedGroup.ARRAYS, np.zeros(len(piece.responses), np.float32))
                    key = piece.item.group.key
                    groups.append(ProjectedGroup(*key, update=number, responses=piece.responses, loss=0.0, **values))
                reports.append(UpdateReport(tuple(groups), StepNorms(1.0, True, {}, {}), 1, 0.0, ()))
            return reports

        def save(self, folder: Path) -> None:
            if self._rank == 0:
                for name in ("policy", "shards"):
                    (folder / name).mkdir()
                    (folder / name / "file").write_text("weights")

    overrides = [
        f"run.dir={arguments.folder}", "run.name=dataplane", f"run.steps={arguments.steps}",
        f"sampling.group_size={arguments.responses}", f"sampling.max_tokens={arguments.tokens}",
        f"pipeline.groups_per_step={arguments.groups}", "pipeline.max_gib=16", "pipeline.tokens_per_micro_batch=65536",
        "objective.behaviour=engine", f"learner.world_size={arguments.ranks}", "learner.cpus_per_rank=0.1",
        "rollout.max_num_seqs=64", "rollout.cpus_per_worker=0.1", "evaluation.num_prompts=0", "checkpoint.every=0",
        "telemetry.tensorboard=false", "telemetry.measured_groups=0", "telemetry.progress=quiet",
        *arguments.overrides,
    ]  # fmt: skip
    config = load_config(Path("configs/quickstart.yaml"), [])
    model = build_model(make_spec(config, for_training=False))
    config = load_config(Path("configs/quickstart.yaml"), [f"model.path={model}", *overrides])
    spec = outline(config, arguments.tokens + 64)
    stalls: list[Stall] = []
    beats = Beats(arguments.folder)
    marks: dict[str, float] = {}

    async def build(spec: Any, model_path: str, events: Any) -> Parts:
        rule = settings.restart_rule(spec)

        async def form(world_size: int) -> Formation:
            actor = ray.remote(concurrency_groups={PROGRESS: 1})(Rank).options(num_cpus=0.1)
            made = settings.learner_settings(spec, model_path)
            return Formation([actor.remote(rank, world_size, made) for rank in range(world_size)], lambda: None)

        values = {
            "world_size": arguments.ranks, "min_world_size": arguments.ranks, "packing": settings.packing(spec),
            "silence_seconds": 600.0, "start_seconds": 600.0, "start_silence_seconds": 600.0, "restarts": rule,
        }  # fmt: skip
        learner = LearnerGroup(form, LearnerRules(**known(LearnerRules, values)), events)
        service = ray.remote(concurrency_groups={PROGRESS: 1})(Service).options(num_cpus=0.1)
        values = {
            "make": lambda count: service.remote(), "num_processes": 1, "silence_seconds": 600, "start_seconds": 600,
            "rule": rule, "events": events, "starts": getattr(roles, "_starts", lambda config: None)(config),
        }  # fmt: skip
        verifier = RemoteVerifier(**known(RemoteVerifier, values))
        builder = remote_target_builder(config, settings.target_rules(spec), rule, events)
        pool = RolloutPool(Worker, 1, settings=settings.pool_settings(spec), events=events)

        class Transport:
            """A transport that tells the engines which weights they have."""

            async def publish(self, step: int) -> Publication:
                members = await pool.started()
                for member in members:
                    await asyncio.wrap_future(member.worker.handle.set_version.remote(step).future())
                pool.serve(members, version := WeightsVersion(step, f"{step:032x}"))
                return Publication(version, 1, 1e-3, pool.statuses(), 0.0, {})

        await learner.start()
        await pool.start()
        await verifier.service.start()
        await builder.builder.start()
        marks["cpu"] = time.process_time()
        loop_watch.append(asyncio.get_running_loop().create_task(beats.watch(stalls)))
        return Parts(pool, verifier, builder, learner, Transport())

    loop_watch: list[Any] = []
    learner_group.remove_placement_group = lambda group: None  # pyright: ignore - of trees whose ranks have one
    connect(config)
    [node] = ray.nodes()
    where = node["NodeManagerAddress"], node["NodeManagerPort"]
    before = node_stats(*where, include_memory_info=False).store_stats
    console = Console(quiet=True)
    with held(spec, lambda text: None) as folder:
        recorder = Recorder(settings.recorder_settings(spec, model), console, spec.tokenizer(model))
        asyncio.run(train(folder, model, build, recorder, Signals()))
    beats.end()
    cpu = time.process_time() - marks["cpu"]
    after = node_stats(*where, include_memory_info=False).store_stats
    rows = [json.loads(line) for line in (spec.run_dir / "metrics.jsonl").read_text().splitlines()]
    disconnect()
    return {
        "seconds_a_step": [round(sum(row[f"seconds_{stage}"] for stage in STAGES), 2) for row in rows],
        "stages": {key: round(rows[-1][f"seconds_{key}"], 2) for key in STAGES},
        "driver_cpu_seconds_a_step": round(cpu / len(rows), 2),
        "stalls": stalls,
        "object_store_mib_a_step": round(
            (after.cumulative_created_bytes - before.cumulative_created_bytes) / MIB / len(rows)
        ),
        "spilled_mib": round((after.spilled_bytes_total - before.spilled_bytes_total) / MIB),
        "samples_mib": round(sum(f.stat().st_size for f in (spec.run_dir / "samples").iterdir()) / MIB / len(rows)),
    }


def known(made: Callable[..., object], values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the arguments that ``made`` takes: a tree of before takes fewer."""
    return {name: value for name, value in values.items() if name in signature(made).parameters}


def status_of(pid: int) -> dict[str, int]:
    """Sizes of a process, in kB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "Rss"))}


def used_kb(pid: int) -> int:
    """Memory of a process and those that it started: what is each one's own, and the most that one has of what they
    share. To count that exactly the kernel would stop the driver for a third of a second.
    """
    root = psutil.Process(pid)
    found = [status_of(process.pid) for process in (root, *root.children(recursive=True))]
    own = sum(status.get("RssAnon", 0) for status in found)
    return own + sum(max(status.get(kind, 0) for status in found) for kind in ("RssShmem", "RssFile"))


def measured(tree: Path, command: list[str], scratch: Path) -> dict[str, object]:
    """Run the driver on the sources of ``tree``, and watch its memory and the machine's."""
    out = scratch / "out.json"
    started = time.time()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).absolute()), str(out), "--folder", str(scratch / "runs"), *command],
        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    peak = {"VmRSS": 0, "RssAnon": 0}
    everyone = looks = 0
    looker = Looker(process.pid, scratch / "runs")
    looker.start()
    while process.poll() is None:
        for key, value in status_of(process.pid).items():
            peak[key] = max(peak.get(key, 0), value)
        if looks % 10 == 0:
            with suppress(psutil.Error):
                everyone = max(everyone, used_kb(process.pid))
        looks += 1
        time.sleep(0.2)
    looker.join()
    if process.returncode:
        raise SystemExit(f"the driver of {tree} ended with {process.returncode}")
    found = json.loads(out.read_text())
    stalls = [Stall(*values) for values in found.pop("stalls")]
    return {
        "driver_peak_mib": peak["VmRSS"] // 1024,
        "driver_peak_own_mib": peak["RssAnon"] // 1024,
        "all_processes_peak_mib": everyone // 1024,
        "wall_seconds": round(time.time() - started, 1),
        **found,
        "largest_stall_seconds": round(max((stall.seconds for stall in stalls), default=0.0), 3),
        "largest_stall_without_waiting_for_a_core_seconds": round(
            max((stall.seconds - stall.queueing for stall in stalls), default=0.0), 3
        ),
        "stalls_above_0.2_s": sum(stall.seconds > 0.2 for stall in stalls),
        "stalled_seconds": round(sum(stall.seconds for stall in stalls if stall.seconds > SHOWN), 2),
        "stalls": looker.causes(stalls),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trees", default="now=.", help="name=checkout, several with , between")
    parser.add_argument("--groups", type=int, default=256)
    parser.add_argument("--responses", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None, help="of the run; given to the process that is measured")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        arguments.out.write_text(json.dumps(driver(arguments)))
        return
    sizes = {name: getattr(arguments, name) for name in ("groups", "responses", "tokens", "steps", "ranks")}
    command = [text for name, value in sizes.items() for text in (f"--{name}", str(value))] + arguments.overrides
    rows = {}
    for entry in arguments.trees.split(","):
        name, _, tree = entry.partition("=")
        with tempfile.TemporaryDirectory(prefix="lpo-ray-dataplane-") as scratch:
            (Path(scratch) / "runs").mkdir()
            rows[name] = measured(Path(tree).absolute(), command, Path(scratch))
        sys.stdout.write(f"{name}: {json.dumps(rows[name], indent=1)}\n")
        sys.stdout.flush()
    content = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        **sizes,
        "tokens_a_step": arguments.groups * arguments.responses * arguments.tokens,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
