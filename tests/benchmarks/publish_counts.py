"""What a publish between GPUs asks of Ray, of the host and of NCCL, counted without a GPU, before and after a change.

python tests/benchmarks/publish_counts.py OUT.json [--before TREE]

Run from the repository's root with PYTHONPATH=. ``TREE``: another checkout, such as a git worktree, measured the same
way. The model is Qwen3-32B with every width divided by 64, so with every byte by 4,096; buckets and pieces are divided
by the same, so calls and collectives are those of the real one.
- Publisher, sender and receivers run on a fake NCCL (tests/support/fake_nccl.py): one rank, two engines.
- The gather from ZeRO-3 shards runs as rank 0 of 16, on torch's fake process group.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

SCALE = 4096
RANKS, ENGINES = 16, 2
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCABULARY = 64, 80, 64, 8, 2, 400, 2374


def counted(
    counts: Counter[str], name: str, function: Callable, of: Callable[..., int] = lambda *_, **__: 1
) -> Callable:
    def call(*arguments: object, **named: object) -> object:
        counts[name] += of(*arguments, **named)
        return function(*arguments, **named)

    return call


def qwen():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        tie_word_embeddings=False,
    )
    return Qwen3ForCausalLM(config).bfloat16()


def bucket_bytes() -> int:
    from lpo_ray.policy import weights

    default = weights.bucket_bytes(None, on_device=True) if hasattr(weights, "bucket_bytes") else 64 * 2**20
    return default // SCALE


def manifest_of(model):
    from lpo_ray.policy.weights import TensorMeta, make_manifest

    metas = [TensorMeta(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    return make_manifest(metas, "bfloat16", bucket_bytes=bucket_bytes(), num_senders=1)


def on_fake_gpus(processes: int) -> dict[str, float]:
    """Publish once to engines that have joined, and count."""
    import pytest
    import torch
    from torch.distributed import HashStore

    from lpo_ray.policy import weights
    from tests.support import fake_nccl, threaded_engines
    from tests.support.threaded_engines import Site, stand_in

    threaded_engines.PREPARE = threaded_engines.JOIN = threaded_engines.TRANSFER = fake_nccl.PATIENCE = 120.0
    patch, counts = pytest.MonkeyPatch(), Counter[str]()
    stand_in(patch)
    nccl = fake_nccl.install(patch)
    inherit_device(patch, fake_nccl)
    hash_bytes = counted(counts, "host", weights.blake3, lambda data: len(data) if isinstance(data, memoryview) else 0)
    patch.setattr(weights, "blake3", hash_bytes)
    with contextlib.suppress(ImportError):
        from actors.transports import receiver, staging
        from lpo_ray.policy import tensor_digest

        # As on a GPU, from which eight bytes a tensor come back.
        for place in (receiver, tensor_digest):
            read = counted(counts, "sums", tensor_digest.as_digests, lambda sums: 8 * len(sums))
            patch.setattr(place, "as_digests", read)
        assert staging.digests_of is tensor_digest.digests_of
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        manifest = manifest_of(qwen())
        site = Site(nccl, ENGINES, processes, manifest)

        async def publish() -> None:
            await site.publish(1)
            counts.clear()
            nccl.issued.clear()
            for actor in (site.rank, *site.engines):
                actor.calls.clear()
            await site.publish(2)

        asyncio.run(publish())
    finally:
        torch.distributed.destroy_process_group()
        patch.undo()
    return {
        "buckets": len(manifest.buckets),
        "ray_calls": sum(len(actor.calls) for actor in (site.rank, *site.engines)),
        "host_gb": (counts["host"] * SCALE + counts["sums"]) / 1e9,
        "broadcasts": sum(device == 0 and kind == "broadcast" for device, _, kind in nccl.issued),
    }


def inherit_device(patch, fake_nccl) -> None:
    """Have threads begin with their parent's device: else versions that never set one cannot be measured at all."""
    import threading

    start = threading.Thread.start

    def starting(thread: threading.Thread) -> None:
        run, device = thread.run, fake_nccl.index_of(None)

        def on_device() -> None:
            fake_nccl.current.device = device
            run()

        thread.run = on_device
        start(thread)

    patch.setattr(threading.Thread, "start", starting)


def gathered() -> dict[str, float]:
    """Gather all buckets as rank 0 of RANKS, and count collectives and waits for the whole device."""
    os.environ |= {
        "DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29555",
    }  # fmt: skip
    import torch
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.comm import comm

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="fake", auto_mpi_discovery=False, verbose=False)
    from actors.learner import zero3
    from lpo_ray.learner.settings import OptimiserSettings

    model = qwen()
    manifest = manifest_of(model)
    zero3.PIECE_BYTES //= SCALE
    sharded = zero3.ShardedModel(model, {}, "auto", False, lambda: None)
    policy = zero3.Zero3Policy(sharded, OptimiserSettings((0.9, 0.999), 0.1, 1.0), gradient_checkpointing=False)
    counts = Counter[str]()
    accelerator = get_accelerator()
    accelerator.synchronize = counted(counts, "device_waits", accelerator.synchronize)
    accelerator.resolves_data_dependency = lambda: False  # as on a GPU
    names = ("all_gather_into_tensor", "all_gather_coalesced", "all_gather")
    for name in [name for name in names if hasattr(comm.cdb, name)]:
        setattr(comm.cdb, name, counted(counts, "gathers", getattr(comm.cdb, name)))
    whole = torch.distributed.all_gather_single
    torch.distributed.all_gather_single = counted(counts, "gathers", whole)
    dtype = () if "dtype" not in zero3.Zero3Policy.gather_into.__annotations__ else (torch.bfloat16,)
    for bucket in manifest.buckets:
        policy.gather_into([tensor.name for tensor in bucket.tensors], {}, *dtype)
    return {"gathers": counts["gathers"], "device_waits": counts["device_waits"]}


PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "tp1": lambda: on_fake_gpus(1), "tp2": lambda: on_fake_gpus(2), "gather": gathered
}  # fmt: skip


def measure(tree: Path) -> dict[str, dict[str, float]]:
    """Measure a checkout, each part in a process of its own: its sources beside these tests."""
    here = Path.cwd()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, source in (("actors", tree), ("lpo_ray", tree), ("tests", here)):
            (Path(folder) / name).symlink_to((source / name).resolve())
        for part in PARTS:
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.publish_counts", "--part", part], check=True, text=True,
                cwd=folder, env={**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
            )  # fmt: skip
            found[part] = json.loads(done.stdout.splitlines()[-1])
    return found


def render(found: dict[str, dict[str, dict[str, float]]]) -> Table:
    table = Table(title=f"a publish of 32 B parameters in bf16 from {RANKS} ranks to {ENGINES} engines")
    for column in ("", *found):
        table.add_column(column, justify="left" if not column else "right")
    rows = [
        ("buckets", "tp1", "buckets"), ("calls to actors (one rank's)", "tp1", "ray_calls"),
        ("GB through the host for digests, TP=1", "tp1", "host_gb"),
        ("GB through the host for digests, TP=2", "tp2", "host_gb"), ("broadcasts", "tp1", "broadcasts"),
        ("gathers", "gather", "gathers"), ("waits for the whole device", "gather", "device_waits"),
    ]  # fmt: skip
    for title, part, key in rows:
        table.add_row(title, *(f"{found[tree][part][key]:,.5g}" for tree in found))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--part", choices=PARTS)
    given = parser.parse_args(arguments)
    if given.part:
        print(json.dumps(PARTS[given.part]()))  # noqa: T201
        return
    trees = {"before": given.before, "after": Path.cwd()} if given.before else {"after": Path.cwd()}
    found = {name: measure(tree) for name, tree in trees.items()}
    Console(width=140).print(render(found))
    given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
