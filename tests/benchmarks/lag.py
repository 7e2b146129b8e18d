"""What a deliberate lag does to LPO with and without its anchor, and to GRPO with and without TIS; three seeds each.

PYTHONPATH=. .venv/bin/python tests/benchmarks/lag.py OUT.json OUT.svg [--lags 4,8] [--seeds 0,1,2] [--steps 40]

OUT.json is added to: seeds and methods can be run in parts; the picture shows the seeds of the last part.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np

from lpo_ray.telemetry.sinks import MetricsLog

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CONFIG = Path(__file__).parent.parent.parent / "configs" / "lagged.yaml"
GRPO = ["objective.divergence=first_order", "objective.token_clip.kind=ppo_ratio", "objective.behaviour=recomputed"]
METHODS = {
    "LPO, anchor": [],
    "LPO, anchor, half rate": ["learner.lr=5e-5"],
    "LPO, no anchor": ["objective.behaviour=recomputed"],
    "GRPO, TIS": [*GRPO, "objective.importance_cap=2"],
    "GRPO": GRPO,
}
COLOURS = dict(zip(METHODS, ("#0072B2", "#009E73", "#56B4E9", "#D55E00", "#E69F00"), strict=True))
KEPT = (
    "reward",
    "pass_rate",
    "effective_sample_size",
    "token_entropy",
    "staleness",
    "gradient_norm",
    "mismatch_kl",
)


def train(folder: Path, name: str, overrides: list[str]) -> dict[str, list[float]]:
    command = [
        sys.executable, "-m", "lpo_ray", "train", str(CONFIG), f"run.dir={folder}", f"run.name={name}", *overrides
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    rows = MetricsLog(folder / name / "metrics.jsonl").read()
    return {key: [row[key] for row in rows] for key in KEPT}


def draw(curves: dict[str, dict[str, list[float]]], lags: list[int], seeds: list[int], out: Path) -> None:
    figure, axes = plt.subplots(2, len(lags), figsize=(5.2 * len(lags), 6.4), layout="constrained", squeeze=False)
    for column, lag in enumerate(lags):
        for method in METHODS:
            if f"{method} / {lag} / {seeds[0]}" not in curves:
                continue
            runs = [curves[f"{method} / {lag} / {seed}"] for seed in seeds]
            for row, key in enumerate(("reward", "effective_sample_size")):
                lines = np.array([run[key] for run in runs])
                if key == "reward":
                    window = np.ones(5) / 5
                    lines = np.array([np.convolve(line, window, mode="valid") for line in lines])
                steps = np.arange(lines.shape[1]) + 1
                axes[row, column].plot(steps, lines.mean(0), color=COLOURS[method], label=method)
                axes[row, column].fill_between(
                    steps, lines.min(0), lines.max(0), color=COLOURS[method], alpha=0.15, lw=0
                )
        axes[0, column].set_title(f"staleness {lag}")
        axes[0, column].set_ylabel("mean reward, 5 steps")
        axes[1, column].set_ylabel("effective sample size of 8")
        for row in (0, 1):
            axes[row, column].set_xlabel("step")
            axes[row, column].grid(alpha=0.25)
            axes[row, column].spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--lags", default="4,8")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--parallel", type=int, default=2, help="runs at once, of one thread each")
    parser.add_argument("--methods", default=";".join(METHODS), help="by name, with ; between")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    lags, seeds = ([int(n) for n in text.split(",")] for text in (arguments.lags, arguments.seeds))
    folder = Path(tempfile.mkdtemp(prefix="lpo-ray-lag-"))
    # what is there already is drawn with the rest
    curves: dict[str, dict[str, list[float]]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}

    def one(seed: int, lag: int, method: str) -> None:
        name = f"{method} / {lag} / {seed}"
        fixed = [f"pipeline.max_staleness={lag}", f"run.seed={seed}", f"run.steps={arguments.steps}"]
        safe = name.replace(" ", "").replace(",", "-").replace("/", "_")
        curves[name] = train(folder, safe, [*fixed, *METHODS[method], *arguments.overrides])
        shown = {key: round(float(np.mean(curves[name][key][-10:])), 4) for key in KEPT}
        sys.stdout.write(f"{name} {shown}\n")
        sys.stdout.flush()
        arguments.out.write_text(json.dumps(dict(sorted(curves.items()))) + "\n")

    with ThreadPoolExecutor(arguments.parallel) as pool:
        list(pool.map(lambda point: one(*point), itertools.product(seeds, lags, arguments.methods.split(";"))))
    draw(curves, lags, seeds, arguments.picture)


if __name__ == "__main__":
    main()
