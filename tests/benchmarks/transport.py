"""Publishing weights, end to end (first gather -> last proof), for every transport; one table, one JSON file.

python tests/benchmarks/transport.py OUT.json [--rounds 7] [--models quickstart,smollm2] [--ranks 1,2] [--kinds ...]

Run from the repository's root with PYTHONPATH=. Real actors: ZeRO-3 ranks and one vLLM engine, on GPUs where there
are any (a rank and an engine then share one GPU for cuda_ipc, and have one each for nccl).

The reference, "memcpy", is a plain copy of the same bytes by one thread between two buffers that are in memory already,
taken in the same run between the publishes. Three of them are what gather, send and load cost if nothing else did.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from actors.cluster import Cluster, _publisher
from actors.transports.table import TRANSPORTS
from lpo_ray.config import load_config
from lpo_ray.records import Publication
from lpo_ray.run.spec import RunSpec, build_model, make_spec
from tests.benchmarks.smollm2 import smollm2
from tests.support.clusters import on_cluster

CACHE = Path.home() / ".cache" / "lpo-ray"
HOST = ("shared_memory", "gloo", "object_store")
WARM_UP = 2
"""publishes that do not count: the first joins the engine and touches new memory"""


@dataclass(frozen=True)
class Row:
    """Medians over the rounds, seconds."""

    model: str
    dtype: str
    kind: str
    ranks: int
    num_bytes: int
    seconds: float
    first_seconds: float
    memcpy_seconds: float
    phases: dict[str, float]
    difference: float
    """largest, of engine and learner log-probs of the probe"""

    @property
    def gb_per_second(self) -> float:
        return self.num_bytes / 1e9 / self.seconds

    @property
    def copies(self) -> float:
        """The whole publish in units of three memcpys."""
        return self.seconds / (3 * self.memcpy_seconds)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def memcpy(num_bytes: int) -> Callable[[], float]:
    torch.set_num_threads(1)
    source, target = (torch.zeros(num_bytes, dtype=torch.uint8) for _ in range(2))
    target.copy_(source)
    return lambda: timed(lambda: target.copy_(source))


def plan_of(model: str, dtype: str, kind: str, folder: Path, ranks: int = 2) -> RunSpec:
    gpus = torch.cuda.device_count()
    per_actor = 0 if not gpus else 0.5 if kind == "cuda_ipc" else 1
    overrides = [
        f"run.dir={folder}", "run.name=transport", f"transport.kind={kind}", f"model.dtype={dtype}",
        f"rollout.dtype={dtype}", f"learner.world_size={1 if gpus else ranks}", f"learner.gpus_per_rank={per_actor}",
        f"rollout.gpus_per_worker={per_actor}", "rollout.gpu_memory_utilization=0.3", "transport.tolerance=1.0",
        "cluster.object_store_gib=2",
    ]  # fmt: skip
    if model == "smollm2":
        overrides += [f"model.path={smollm2(CACHE)}"]
    return make_spec(load_config(Path("configs/quickstart.yaml"), overrides), for_training=False)


def measure(model: str, dtype: str, kinds: Sequence[str], ranks: int, rounds: int, folder: Path) -> list[Row]:
    """Transports that end in the same engine class take turns on one cluster."""
    spec = plan_of(model, dtype, kinds[0], folder, ranks)
    path = build_model(spec)
    rows: list[Row] = []

    async def use(cluster: Cluster) -> None:
        copy = memcpy(cluster.learner.manifest.num_bytes)
        for kind in kinds:
            publisher = await _publisher(spec, path, cluster.learner, cluster.rollout, TRANSPORTS[kind])
            done: list[Publication] = []
            copies: list[float] = []
            for number in range(WARM_UP + rounds):
                done.append(await publisher.publish(number))
                copies.append(copy())
            rows.append(row_of(model, dtype, kind, cluster.learner.world_size, done, copies))

    on_cluster(spec, path, use)
    return rows


def row_of(model: str, dtype: str, kind: str, ranks: int, done: Sequence[Publication], copies: Sequence[float]) -> Row:
    counted = done[WARM_UP:]
    phases = {name: statistics.median(p.phases[name] for p in counted) for name in counted[0].phases}
    return Row(
        model, dtype, kind, ranks, done[0].num_bytes, statistics.median(p.seconds for p in counted), done[0].seconds,
        statistics.median(copies[WARM_UP:]), phases, max(p.difference for p in done),
    )  # fmt: skip


def render(rows: list[Row]) -> Table:
    table = Table(title="publish, from the first gather to the last proof; medians")
    for column in ("model", "dtype", "MB", "transport", "ranks", "seconds", "GB/s", "3 x memcpy", "ratio", "where"):
        table.add_column(column, justify="left" if column in ("model", "dtype", "transport", "where") else "right")
    for row in rows:
        where = "  ".join(f"{name} {value * 1e3:.0f}" for name, value in row.phases.items())
        table.add_row(
            row.model, row.dtype, f"{row.num_bytes / 1e6:.1f}", row.kind, str(row.ranks), f"{row.seconds:.3f}",
            f"{row.gb_per_second:.2f}", f"{3 * row.memcpy_seconds:.3f}", f"{row.copies:.1f}", f"{where} ms",
        )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", default="quickstart,smollm2")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--ranks", default="2", help="learner ranks, on CPU")
    parser.add_argument("--kinds", default=None, help="default: all that this machine has hardware for")
    arguments = parser.parse_args()
    gpus = torch.cuda.device_count()
    kinds = arguments.kinds.split(",") if arguments.kinds else None
    families = [[kind] for kind in kinds] if kinds else [HOST, *[["cuda_ipc"]] * (gpus > 0), *[["nccl"]] * (gpus > 1)]
    rows: list[Row] = []
    for model in arguments.models.split(","):
        for dtype in arguments.dtypes.split(","):
            for ranks in map(int, arguments.ranks.split(",")):
                for family in families:
                    rows += (found := measure(model, dtype, family, ranks, arguments.rounds, arguments.out.parent))
                    Console(width=180).print(render(found))
    Console(width=180).print(render(rows))
    content = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(gpus)],
        "rounds": arguments.rounds,
        "rows": [{**asdict(row), "gb_per_second": row.gb_per_second, "three_memcpys": row.copies} for row in rows],
    }  # fmt: skip
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
