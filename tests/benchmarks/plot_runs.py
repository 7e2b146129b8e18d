"""One figure of several finished runs: pass rate in training, token entropy, and pass@k before and after.

python tests/benchmarks/plot_runs.py OUT.svg runs/quickstart runs/seed1 runs/seed2
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lpo_ray.telemetry.monitor.report import PALETTE
from lpo_ray.telemetry.sinks import MetricsLog


def smooth(values: list[float], width: int = 5) -> list[float]:
    """Centred moving average; shorter at the ends."""
    half = width // 2
    windows = [values[max(0, at - half) : at + half + 1] for at in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def main(out: Path, folders: list[Path]) -> None:
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    left, middle, right = figure.subplots(1, 3)
    for number, folder in enumerate(folders):
        rows = MetricsLog(folder / "metrics.jsonl").read()
        summary = json.loads((folder / "summary.json").read_text())
        steps = [row["step"] for row in rows]
        label = f"seed {summary['seed']}"
        for axes, metric in ((left, "pass_rate"), (middle, "token_entropy")):
            axes.plot(steps, smooth([row[metric] for row in rows]), color=PALETTE[number], label=label)
        for at, name in enumerate(("pass@1", "pass@16")):
            for when, shift in (("before", -0.12), ("after", 0.12)):
                found = summary["evaluation"][when]
                low, high = found["ci95"][name]
                x = at + shift + 0.06 * (number - 1)
                hollow = {"markerfacecolor": "white"} if when == "before" else {}
                error = [[found[name] - low], [high - found[name]]]
                right.errorbar([x], [found[name]], yerr=error, fmt="o", color=PALETTE[number], capsize=2, **hollow)
    left.set_title("Pass rate of sampled responses", fontsize=10)
    middle.set_title("Token entropy (nats)", fontsize=10)
    right.set_title("Held-out: before (hollow), after (full)", fontsize=10)
    right.set_xticks([0, 1], ["pass@1", "pass@16"])
    right.set_xlim(-0.5, 1.5)
    right.set_ylim(0, 1)
    left.legend(frameon=False, fontsize=8)
    for axes in (left, middle):
        axes.set_xlabel("step")
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
