"""Publishing weights, end to end (first gather -> last proof), for every transport; one table, one JSON file.

python tests/benchmarks/transport.py OUT.json [--rounds 7] [--models quickstart,smollm2,wide] [--ranks 1,2]
    [--processes 1,2] [--kinds ...] [--trees before=DIR,after=.]

Run from the repository's root with PYTHONPATH=. Real actors: ZeRO-3 ranks and one vLLM engine, on GPUs where there
are any (a rank and an engine then share one GPU for cuda_ipc, and have one each for nccl). An engine of two processes
has tensor parallelism; SmolLM2's 9 heads do not allow it: "wide" has 8, its other sizes, and random weights.

Each tree is a checkout. They take turns, each in a process of its own; what one cannot do is a row that says why. Rows
are added to those that OUT.json has.

The reference, "memcpy", is a plain copy of the same bytes by one thread between two buffers that are in memory already,
taken in the same run between the publishes. Three of them are what gather, send and load cost if nothing else did.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from actors.cluster import Cluster, _publisher
from actors.publisher import Publisher
from actors.transports.table import TRANSPORTS
from lpo_ray.config import load_config
from lpo_ray.records import Publication
from lpo_ray.run import settings
from lpo_ray.run.spec import RunSpec, build_model, make_spec
from tests.support.clusters import on_cluster

CACHE = Path.home() / ".cache" / "lpo-ray"
HOST = ("shared_memory", "gloo", "object_store")
WARM_UP = 2
"""publishes that do not count: the first joins the engine and touches new memory"""
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What a cluster is started for. Transports that end in the same engine class take turns on it."""

    tree: str
    model: str
    path: str
    """empty: the quickstart's own"""
    dtype: str
    ranks: int
    processes: int
    """of the engine"""
    kinds: Sequence[str]
    rounds: int

    def about(self) -> Row:
        """Return what its rows have in common."""
        return {name: getattr(self, name) for name in ("tree", "model", "dtype", "ranks", "processes", "rounds")}


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def memcpy(num_bytes: int) -> Callable[[], float]:
    torch.set_num_threads(1)
    source, target = (torch.zeros(num_bytes, dtype=torch.uint8) for _ in range(2))
    target.copy_(source)
    return lambda: timed(lambda: target.copy_(source))


def plan_of(case: Case, folder: Path) -> RunSpec:
    gpus = torch.cuda.device_count()
    per_rank = 0 if not gpus else 0.5 if case.kinds[0] == "cuda_ipc" else 1
    overrides = [
        f"run.dir={folder}", "run.name=transport", f"transport.kind={case.kinds[0]}", f"model.dtype={case.dtype}",
        f"rollout.dtype={case.dtype}", f"learner.world_size={case.ranks}", f"learner.gpus_per_rank={per_rank}",
        f"rollout.gpus_per_worker={per_rank * case.processes}", "rollout.gpu_memory_utilization=0.3",
        "transport.tolerance=1.0", "cluster.object_store_gib=2", f"rollout.tensor_parallel_size={case.processes}",
        *([f"model.path={case.path}"] if case.path else []),
    ]  # fmt: skip
    return make_spec(load_config(Path("configs/quickstart.yaml"), overrides), for_training=False)


async def _made(spec: RunSpec, path: str, cluster: Cluster, kind: str) -> Publisher:
    """Make a publisher by the transport ``kind``, with the arguments that the tree's own takes."""
    taken = signature(_publisher).parameters
    given: dict[str, Any] = {
        "spec": spec, "model_path": path, "learner": cluster.learner, "rollout": cluster.rollout,
        "transport": TRANSPORTS[kind],
    }  # fmt: skip
    if "proof" in taken:
        given["proof"] = settings.proof_limits(spec, path)
    return await _publisher(**{name: given[name] for name in taken})


def measure(case: Case, folder: Path) -> list[Row]:
    """Publish in this process, with the sources that it finds."""
    spec = plan_of(case, folder)
    path = build_model(spec)
    rows: list[Row] = []

    async def use(cluster: Cluster) -> None:
        copy = memcpy(cluster.learner.manifest.num_bytes)
        for kind in case.kinds:
            publisher = await _made(spec, path, cluster, kind)
            done: list[Publication] = []
            copies: list[float] = []
            for number in range(WARM_UP + case.rounds):
                done.append(await publisher.publish(number))
                copies.append(copy())
            rows.append({**case.about(), "kind": kind, **figures_of(done, copies[WARM_UP:])})

    on_cluster(spec, path, use)
    return rows


def figures_of(done: Sequence[Publication], copies: Sequence[float]) -> Row:
    """Return medians, in seconds; ``difference`` is the largest of engine and learner log-probs of the probe."""
    counted, num_bytes = done[WARM_UP:], done[0].num_bytes
    seconds, copy = statistics.median(p.seconds for p in counted), statistics.median(copies)
    return {
        "num_bytes": num_bytes, "seconds": seconds, "first_seconds": done[0].seconds, "memcpy_seconds": copy,
        "phases": {name: statistics.median(p.phases[name] for p in counted) for name in counted[0].phases},
        "difference": max(p.difference for p in done), "gb_per_second": num_bytes / 1e9 / seconds,
        "three_memcpys": seconds / (3 * copy),
    }  # fmt: skip


def in_tree(case: Case, tree: Path) -> list[Row]:
    """Measure with the sources of a checkout."""
    with tempfile.TemporaryDirectory(prefix="lpo-ray-transport-") as folder:
        found, output = Path(folder) / "rows.json", Path(folder) / "output.txt"
        command = [sys.executable, str(Path(__file__).absolute()), str(found), "--case", json.dumps(asdict(case))]
        with output.open("w") as file:
            done = subprocess.run(
                command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, stdout=file, stderr=file, check=False
            )
        if done.returncode == 0:
            return json.loads(found.read_text())
        sys.stderr.write(output.read_text())
        why = next(line for line in reversed(output.read_text().splitlines()) if line.strip())
        return [{**case.about(), "kind": ", ".join(case.kinds), "cannot": why[:500]}]


def render(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="publish, from the first gather to the last proof; medians")
    for column in ("tree", "model", "dtype", "MB", "transport", "ranks", "processes", "seconds", "GB/s", "3 x memcpy",
                   "ratio", "where"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("tree", "model", "transport", "where") else "right")
    for row in rows:
        about = (row["tree"], row["model"], row["dtype"])
        where = (row["kind"], str(row["ranks"]), str(row["processes"]))
        if "cannot" in row:
            table.add_row(*about, "", *where, "", "", "", "", f"cannot: {row['cannot']}")
            continue
        phases = "  ".join(f"{name} {value * 1e3:.0f}" for name, value in row["phases"].items())
        table.add_row(
            *about, f"{row['num_bytes'] / 1e6:.1f}", *where, f"{row['seconds']:.3f}", f"{row['gb_per_second']:.2f}",
            f"{3 * row['memcpy_seconds']:.3f}", f"{row['three_memcpys']:.1f}", f"{phases} ms",
        )  # fmt: skip
    return table


def path_of(model: str) -> str:
    """Return the folder of a model; empty for the quickstart's, which a run makes."""
    if model == "quickstart":
        return ""
    from tests.benchmarks.smollm2 import random_smollm2, smollm2

    if model == "smollm2":
        return str(smollm2(CACHE))
    folder = CACHE / "benchmarks-wide"
    return str(folder if folder.exists() else random_smollm2(folder, heads=8, kv_heads=4))


def cases(arguments: argparse.Namespace) -> list[Case]:
    """List what is measured: trees take turns."""
    gpus = torch.cuda.device_count()
    kinds = (*HOST, *["cuda_ipc"] * (gpus > 0), *["nccl"] * (gpus > 1))
    kinds = arguments.kinds.split(",") if arguments.kinds else kinds
    families = [[kind for kind in kinds if kind in HOST], *([kind] for kind in kinds if kind not in HOST)]
    families = [family for family in families if family]
    given = ("1" if gpus else arguments.ranks, arguments.processes)
    ranks, processes = ([int(number) for number in text.split(",")] for text in given)
    found = []
    for model, dtype in itertools.product(arguments.models.split(","), arguments.dtypes.split(",")):
        base = Case("", model, path_of(model), dtype, 0, 0, (), arguments.rounds)
        for rank, process, family in itertools.product(ranks, processes, families):
            found += [replace(base, tree=tree, ranks=rank, processes=process, kinds=family) for tree in arguments.trees]
    return found


def trees(text: str) -> dict[str, Path]:
    return {name: Path(tree).absolute() for name, _, tree in (entry.partition("=") for entry in text.split(","))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", default="quickstart,smollm2")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--ranks", default="2", help="learner ranks, on CPU")
    parser.add_argument("--processes", default="1", help="of the engine, on as many GPUs")
    parser.add_argument("--kinds", default=None, help="default: all that this machine has hardware for")
    parser.add_argument("--trees", type=trees, default="now=.", help="name=checkout, several with , between")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case = Case(**json.loads(arguments.case))
        arguments.out.write_text(json.dumps(measure(case, arguments.out.parent)))
        return
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    for case in cases(arguments):
        found = in_tree(case, arguments.trees[case.tree])
        Console(width=200).print(render(found))
        rows += found
        content = {
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(content, indent=2) + "\n")
    Console(width=200).print(render(rows))


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
