"""Picture of an evaluation: pass@k over k with its band, and the same by difficulty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lpo_ray.common.files import replacing
from lpo_ray.evaluation.report import Measures, Report, ks_shown

COLOUR = "#0072B2"
MOST_LINES = 8
"""most groups that are drawn: the largest"""


def draw(report: Report, path: Path) -> None:
    """Write ``path``, a PNG, whole or not at all. The groups are those of the last breakdown: the data's column where
    there is one, else the prompts' own pass rate.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _curve(left, report.overall, COLOUR, "pass@k, 95 % over prompts", band=True)
    n = report.overall.samples_per_prompt
    majority = report.overall.estimates[f"maj@{n}"]
    spread = [[majority.value - majority.low], [majority.high - majority.value]]
    left.errorbar([n], [majority.value], yerr=spread, fmt="D", color="#D55E00", capsize=3, label=f"maj@{n}")
    left.set_title(report.title, fontsize=10)
    left.set_ylabel("probability")
    by = list(report.by)[-1]
    largest = sorted(report.by[by].items(), key=lambda item: -item[1].num_prompts)[:MOST_LINES]
    colours = _shades(len(largest))
    for (name, measures), colour in zip(
        [item for item in report.by[by].items() if item in largest], colours, strict=True
    ):
        _curve(right, measures, colour, f"{name} ({measures.num_prompts})", band=False)
    right.set_title(f"by {by} (prompts)", fontsize=10)
    for axes in (left, right):
        axes.set_xlabel("k")
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="best")
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _curve(axes: Axes, measures: Measures, colour: str, label: str, *, band: bool) -> None:
    n = measures.samples_per_prompt
    ks = list(range(1, n + 1))
    estimates = [measures.estimates[f"pass@{k}"] for k in ks]
    axes.plot(ks, [e.value for e in estimates], color=colour, label=label, marker="o" if n == 1 else None)
    if band:
        axes.fill_between(ks, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks_shown(n), [str(k) for k in ks_shown(n)])
    axes.minorticks_off()


def _shades(count: int) -> list[str]:
    """Make shades from light to dark."""
    levels = np.linspace(0.75, 0.0, max(count, 1))
    return [f"#{int(213 * v):02x}{int(94 + 100 * v):02x}{int(114 + 141 * v):02x}" for v in levels][:count]
