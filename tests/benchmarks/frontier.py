"""One picture of all studies that begin with the same arm: what another arm gives in pass@1 against what in pass@k.

PYTHONPATH=. .venv/bin/python tests/benchmarks/frontier.py configs/results/frontier.png adaptive temperature annealing
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

RESULTS = Path(__file__).parent.parent.parent / "configs" / "results"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00")
WHEN = ("at the end", "over the curve")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("studies", nargs="+")
    parser.add_argument("--k", type=int, default=16)
    asked = parser.parse_args()
    found = {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in asked.studies}
    figure, panels = plt.subplots(1, len(WHEN), figsize=(13, 6), layout="constrained")
    for axes, when in zip(panels, WHEN, strict=True):
        for (name, study), colour in zip(found.items(), COLOURS, strict=False):
            draw(axes, name, study["to_first"], f"pass@1 {when}", f"pass@{asked.k} {when}", colour)
        axes.plot(0, 0, "k*", markersize=12)
        axes.annotate(" the first arm", (0, 0), fontsize=8)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.set(xlabel=f"pass@1 {when}, difference", ylabel=f"pass@{asked.k} {when}, difference")
    panels[0].legend(frameon=False, fontsize=9, loc="lower left")
    figure.savefig(asked.out, dpi=110, metadata={"Software": None})


def draw(axes: Axes, study: str, arms: list[dict], across: str, up: str, colour: str) -> None:
    """An arm a point, with the 95 % interval of both differences."""
    for number, arm in enumerate(arms):
        x, y = (arm["by"][measure] for measure in (across, up))
        axes.errorbar(
            x["mean"], y["mean"],
            xerr=[[x["mean"] - x["low"]], [x["high"] - x["mean"]]],
            yerr=[[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
            fmt="o", color=colour, markersize=5, elinewidth=0.6, alpha=0.8, label="" if number else study,
        )  # fmt: skip
        axes.annotate(f" {arm['arm']}", (x["mean"], y["mean"]), fontsize=7)


if __name__ == "__main__":
    main()
