"""One picture of all studies that begin with the same arm: what another arm gives in pass@1 against what in pass@k.

PYTHONPATH=. .venv/bin/python tests/benchmarks/frontier.py configs/results/frontier.png adaptive temperature annealing
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

RESULTS = Path(__file__).parent.parent.parent / "configs" / "results"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#999999", "#8C564B", "#BCBD22")
WHEN = ("at the end", "over the curve")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("studies", nargs="+")
    parser.add_argument("--k", type=int, default=16)
    asked = parser.parse_args()
    arms = list(arms_of(asked.studies))
    figure, panels = plt.subplots(1, len(WHEN), figsize=(14, 5.2), layout="constrained")
    for axes, when in zip(panels, WHEN, strict=True):
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.plot(0, 0, "k*", markersize=13, label="forward_kl at group_std")
        for number, (label, by) in enumerate(arms, 1):
            draw(axes, number, label, by[f"pass@1 {when}"], by[f"pass@{asked.k} {when}"])
        axes.set(xlabel=f"pass@1 {when}, difference", ylabel=f"pass@{asked.k} {when}, difference")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(asked.out, dpi=110, metadata={"Software": None})


def arms_of(studies: Sequence[str]) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Label and differences of each arm; controls of the first study only: GRPO at adaptive tau is far off the page."""
    for number, name in enumerate(studies):
        for arm in json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["to_first"]:
            if number == 0 or not arm["arm"].startswith("first_order"):
                label = arm["arm"]
                yield (f"{label[:40]}..." if len(label) > 43 else label), arm["by"]


def draw(axes: Axes, number: int, label: str, x: dict[str, float], y: dict[str, float]) -> None:
    """An arm a point with its number, and the 95 % interval of both differences."""
    colour = COLOURS[(number - 1) % len(COLOURS)]
    axes.errorbar(
        x["mean"], y["mean"],
        xerr=[[x["mean"] - x["low"]], [x["high"] - x["mean"]]],
        yerr=[[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
        fmt="o", color=colour, markersize=6, elinewidth=0.6, label=f"{number} {label}",
    )  # fmt: skip
    axes.annotate(str(number), (x["mean"], y["mean"]), xytext=(5, 4), textcoords="offset points", fontsize=10)


if __name__ == "__main__":
    main()
