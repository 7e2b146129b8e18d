"""The learner beside a plain PyTorch loop: tokens per second, peak memory, padding; one table, one JSON file.

python tests/benchmarks/learner.py OUT.json [--rounds 4] [--only speed|memory] [--tables smollm2 short tiny]

Run from the repository's root with PYTHONPATH=. Children get the environment of a learner rank (malloc keeps blocks).

Speed. The reference, "plain", is a bare forward + backward + AdamW over sequences of one length, so that it needs no
padding: the batch that suits it best. "project" is the learner's own update on one ZeRO-3 rank: coefficients, token
clip, norms, and all. All variants of a table take turns in one process, on two threads; medians over the rounds.
Memory. Each variant in a process of its own, in its second step, by torch's own count of what it has allocated: the
resident set of a process also shows what the allocator has not given back, and varies from run to run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

THREADS = 2
os.environ.update(
    OMP_NUM_THREADS=str(THREADS), HF_HUB_OFFLINE="1", DS_ACCELERATOR="cpu", TRANSFORMERS_VERBOSITY="error",
    RANK="0", LOCAL_RANK="0", WORLD_SIZE="1",
)  # fmt: skip

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from actors.learner.zero3 import ShardedModel, Zero3Policy, join_group
from actors.runtime.cpu_tuning import KEEP_BLOCKS
from lpo_ray.learner.packing import Packing, pack_update
from lpo_ray.learner.settings import Objective, OptimiserSettings
from lpo_ray.learner.torch_learner import TorchPolicy
from lpo_ray.learner.updates import run_updates
from lpo_ray.policy import layout as layouts
from lpo_ray.policy.attention import PACKED
from lpo_ray.policy.layout import Layout, lay_out
from lpo_ray.policy.loading import load_policy
from lpo_ray.records import Prompt, PromptGroup, Response, ScoredGroup, TargetGroup, zero_anchor
from lpo_ray.tasks.base_policy import Recipe, cached_base_policy
from tests.benchmarks.smollm2 import smollm2

CACHE = Path.home() / ".cache" / "lpo-ray"
LPO = Objective("forward_kl", "clamp", 0.2, 0.2, "mean", 1.0, behaviour_from_engine=False, reference_kl=0.0)
GRPO = replace(LPO, divergence="first_order", token_clip="ppo_ratio")
WARM_UP = 2
"""rounds that do not count: optimiser state is made in the first, and malloc has its blocks after the second"""
ADAMW = OptimiserSettings((0.9, 0.999), 0.0, 1.0)


@dataclass(frozen=True)
class Shape:
    """A batch: groups of K responses."""

    groups: int
    size: int
    prompt: int
    response: int
    varied: bool = False
    """lengths of responses between a quarter of ``response`` and twice that, with the same sum"""
    budget: int = 10**6
    """tokens per micro-batch"""

    @property
    def tokens(self) -> int:
        return self.groups * self.size * (self.prompt + self.response)


SHAPES = {"smollm2": Shape(4, 8, 64, 96), "short": Shape(8, 8, 104, 8), "tiny": Shape(32, 8, 16, 16)}
"""of each table; "short": SmolLM2 with the lengths of configs/smollm2_countdown.yaml"""
LENGTHS = (
    ("project", {}),
    ("project, shared prompt", {"share": True}),
    ("project, varied lengths", {"varied": True}),
    ("project, varied lengths, padded", {"varied": True, "attention": "padded"}),
)
VARIANTS = {
    "smollm2": LENGTHS,
    "tiny": LENGTHS,
    "short": (
        ("project", {}),
        ("project, shared prompt, which looks at itself K times", {"share": True, "masked_queries": 0}),
        ("project, shared prompt", {"share": True}),
    ),
}
BUDGETS = {"float32": 2560, "bfloat16": 5120}
"""tokens per micro-batch of SmolLM2, for all variants: what 24 GB hold, the padded one included"""


def model_path(table: str) -> str:
    if table == "tiny":
        return str(cached_base_policy(CACHE, Recipe(steps=2, batch_size=8)))
    return str(smollm2(CACHE))


def make_groups(shape: Shape, vocabulary: int) -> list[TargetGroup]:
    rng = np.random.default_rng(0)
    groups = []
    for number in range(shape.groups):
        lengths = np.full(shape.size, shape.response)
        if shape.varied:
            lengths = np.maximum(shape.response // 4, rng.lognormal(0, 0.6, shape.size) * shape.response * 0.8).astype(
                int
            )
            lengths[-1] += shape.size * shape.response - lengths.sum()
        responses = tuple(
            Response(rng.integers(0, vocabulary, n), np.full(n, -5.0, np.float32), np.zeros(n, np.int64), "stop")
            for n in np.maximum(lengths, 1)
        )
        prompt = Prompt(f"p{number:08d}", rng.integers(0, vocabulary, shape.prompt), "{}", "countdown")
        rewards = rng.integers(0, 2, shape.size).astype(np.float32)
        log_target = np.log(rng.dirichlet(np.ones(shape.size))).astype(np.float32)
        scored = ScoredGroup(PromptGroup(prompt, 0, responses), rewards)
        groups.append(TargetGroup(scored, log_target, zero_anchor([scored])[0], 1.0))
    return groups


def plain(path: str, dtype: str, shape: Shape) -> Callable[[], None]:
    """Bare PyTorch; bf16 is pure, without master weights, which is the cheapest there is."""
    model = load_policy(path, dtype).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)
    rows = [
        np.concatenate([target.group.prompt.token_ids, response.token_ids])
        for target in make_groups(shape, model.config.vocab_size)
        for response in target.group.responses
    ]
    token_ids = torch.from_numpy(np.stack(rows))
    batches = token_ids.split(max(1, shape.budget // token_ids.shape[1]))

    def run() -> None:
        for batch in batches:
            (model(input_ids=batch, labels=batch, use_cache=False).loss / len(batches)).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return run


def make_policy(path: str, dtype: str) -> Zero3Policy:
    """One ZeRO-3 rank, as the learner makes it."""
    if not torch.distributed.is_initialized():
        join_group(torch.distributed.HashStore(), 0, 1, on_gpu=False)
    sharded = ShardedModel(load_policy(path, dtype), {}, "packed", share_prompt=False, count=lambda: None)
    return Zero3Policy(sharded, ADAMW, gradient_checkpointing=False)


def project(
    policy: Zero3Policy, shape: Shape, *, objective: Objective = LPO, share: bool = False, attention: str = "packed",
    masked_queries: int = layouts.MASKED_QUERIES,
) -> tuple[Callable[[], None], float]:  # fmt: skip
    """The learner's update, and its padding. Variants share one policy, whose layout is switched before each run."""
    groups = make_groups(shape, policy.model.config.vocab_size)
    update = pack_update(groups, Packing(1, shape.budget, share))

    def run() -> None:
        policy.packed, policy.share_prompt = attention == "packed", share
        layouts.MASKED_QUERIES = masked_queries
        policy.model.set_attn_implementation(PACKED if policy.packed else "sdpa")
        run_updates(policy, [update], 0, objective, 1e-6)

    bundles = [(target.group.prompt.token_ids, [r.segments for r in target.group.responses]) for target in groups]
    return run, lay_out(bundles, packed=attention == "packed", share_prompt=share).padding


class NaivePolicy(TorchPolicy):
    """What most trainers do: all logits at once, their log-softmax in fp32, entropy from it."""

    def score(self, layout: Layout, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model(input_ids=layout.token_ids, attention_mask=layout.attention_mask, use_cache=False).logits
        log_softmax = (logits.float() / temperature).log_softmax(-1).flatten(0, 1)
        chosen = log_softmax.index_select(0, layout.select)
        with torch.no_grad():
            entropy = -(chosen.exp() * chosen).sum(-1)
        return chosen.gather(1, layout.targets[:, None])[:, 0], entropy


def speed(table: str, dtype: str, rounds: int) -> Iterator[dict[str, object]]:
    path, shape = model_path(table), SHAPES[table]
    shape = shape if table == "tiny" else replace(shape, budget=BUDGETS[dtype])
    runs: dict[str, tuple[Callable[[], None], float, Shape]] = {"plain": (plain(path, dtype, shape), 0.0, shape)}
    policy = make_policy(path, dtype)
    for name, options in VARIANTS[table]:
        batch = replace(shape, varied=options.get("varied", False))
        run, padding = project(policy, batch, **{key: value for key, value in options.items() if key != "varied"})
        runs[name] = (run, padding, batch)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(WARM_UP + rounds):
        for name, (run, _, _) in runs.items():
            start = time.perf_counter()
            run()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    rates = {name: runs[name][2].tokens / float(np.median(values)) for name, values in seconds.items()}
    for name, (_, padding, batch) in runs.items():
        yield {
            "table": table, "dtype": dtype, "variant": name, "tokens": batch.tokens, "tokens_per_second": rates[name],
            "ratio_to_plain": rates[name] / rates["plain"], "padding": padding, "seconds": seconds[name],
        }  # fmt: skip


MEMORY: dict[str, tuple[Shape, Callable[[str, Shape], Callable[[], None]]]] = {
    "LPO step": (Shape(2, 8, 64, 96), lambda path, shape: step_of(LPO, path, shape)),
    "GRPO step": (Shape(2, 8, 64, 96), lambda path, shape: step_of(GRPO, path, shape)),
    "chunked head": (Shape(1, 8, 1, 511), lambda path, shape: torch_step(TorchPolicy, path, shape)),
    "naive full logits": (Shape(1, 8, 1, 511), lambda path, shape: torch_step(NaivePolicy, path, shape)),
}
"""the last two: 8 x 512 tokens at a vocabulary of 49,152, gradient checkpointing in both"""


def step_of(objective: Objective, path: str, shape: Shape) -> Callable[[], None]:
    return project(make_policy(path, "float32"), shape, objective=objective)[0]


def torch_step(kind: type[TorchPolicy], path: str, shape: Shape) -> Callable[[], None]:
    model = load_policy(path, "float32").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = kind(model, ADAMW, attention="padded")
    update = pack_update(make_groups(shape, model.config.vocab_size), Packing(1, shape.budget, share_prompt=False))
    return lambda: run_updates(policy, [update], 0, LPO, 1e-6) and None


def memory_of(name: str) -> dict[str, float]:
    """MiB. ``step``: what torch holds at most during a step on top of what it held before it, by its own count of
    allocations; ``state``: fp32 weights and two moments, which it held before.
    """
    shape, make = MEMORY[name]
    path = model_path("smollm2")
    run = make(path, shape)
    run()  # the optimiser's state exists from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    with tempfile.TemporaryDirectory() as folder:
        profiled.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    step = max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]") / 2**20
    state = 3 * sum(p.numel() for p in load_policy(path, "float32").parameters()) * 4 / 2**20
    return {"state": state, "step": step, "peak": state + step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("learner.json"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", choices=("speed", "memory"))
    parser.add_argument("--tables", nargs="*", default=list(SHAPES))
    parser.add_argument("--memory-of", choices=MEMORY)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.memory_of:
        sys.stdout.write("\n" + json.dumps(memory_of(options.memory_of)) + "\n")
        return
    console, result = Console(stderr=True), {"date": datetime.now().isoformat(timespec="seconds"), "machine": machine()}
    if options.only != "memory":
        result["speed"] = [
            row
            for table in options.tables
            for dtype in ("float32", "bfloat16")
            for row in in_child(table, dtype, options)
        ]
        table = Table("table", "dtype", "variant", "tokens/s", "of plain", "padding")
        for row in result["speed"]:
            table.add_row(
                row["table"], row["dtype"], row["variant"], f"{row['tokens_per_second']:,.0f}",
                f"{row['ratio_to_plain']:.3f}", f"{row['padding']:.1%}",
            )  # fmt: skip
        console.print(table)
    if options.only != "speed":
        found = {name: _json([sys.executable, __file__, "--memory-of", name]) for name in MEMORY}
        result["memory_mib"] = found
        result["lpo_to_grpo"] = found["LPO step"]["step"] / found["GRPO step"]["step"]
        result["chunked_to_naive"] = found["chunked head"]["peak"] / found["naive full logits"]["peak"]
        table = Table("SmolLM2, fp32", "weights and moments, MiB", "step, MiB", "peak, MiB")
        for name, row in found.items():
            table.add_row(name, *(f"{row[key]:,.0f}" for key in ("state", "step", "peak")))
        console.print(table)
        console.print(
            f"LPO / GRPO, step: {result['lpo_to_grpo']:.4f}; chunked / naive, peak: {result['chunked_to_naive']:.3f}"
        )
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def in_child(table: str, dtype: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """One table's variants take turns in one process; tables do not share one, so that memory is given back."""
    code = (
        "import json, sys, torch; import tests.benchmarks.learner as b; torch.set_num_threads(b.THREADS); "
        f"print(); print(json.dumps(list(b.speed({table!r}, {dtype!r}, {options.rounds}))))"
    )
    return _json([sys.executable, "-c", code])


def _json(command: list[str]):
    finished = subprocess.run(command, env={**os.environ, **KEEP_BLOCKS}, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(f"{command} ended with {finished.returncode}:\n{finished.stderr[-3000:]}")
    return json.loads(finished.stdout.splitlines()[-1])


def machine() -> str:
    model = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ":"
    )
    return f"{model.partition(':')[2].strip()}, {os.cpu_count()} cores, torch {torch.__version__}, {platform.machine()}"


if __name__ == "__main__":
    main()
