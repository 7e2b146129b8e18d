"""The table and the picture of token_reversal.json, whatever it has by now.

PYTHONPATH=. .venv/bin/python tests/benchmarks/token_reversal_report.py configs/results/token_reversal.json

Writes token_reversal.md and token_reversal.png beside it.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import matplotlib
import numpy as np

from tests.benchmarks.reversal.arms import ARMS, HORIZONS, PUBLISHED_ONLY, Arm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FINAL = 100
"""batches at the end whose mean is a run's error"""
LEARNED, KEPT = 0.01, 0.05
"""error of some stretch of a run, and of its last batches"""
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#999999", "#000000", "#8C564B", "#BCBD22",
    "#4B0082", "#17BECF",
)  # fmt: skip
Runs = dict[str, dict[str, dict[str, dict]]]

HEADER = """# Token reversal with a terminal reward

The task of TPO (arXiv 2604.06159, section 3.6, prompt-matched): H random symbols of 2 are to be said backwards; a
response has reward 1 when all of it is right, 0 otherwise. {batches} batches of {prompts} prompts x {group_size}
responses, {epochs} updates on each. Error in % of the responses sampled in the last {final} batches, mean over seeds
+- standard error (number of seeds); runs that are not done yet are missing. Published: error in the last batch, mean of
20 seeds, ">95": no meaningful learning.

"""

KEEPING = """
Means hide that most runs end near 0 or near 100 %. Seeds that learned it (some {every} batches below {learned:.0%})
and, after the arrow, that still knew it at the end (below {kept:.0%}), of all:

"""

NOTES = """
From the paper and its public code: 2 layers of width 64, 2 heads (the paper's text says 4), Muon for two-dimensional
parameters and Adam with Nesterov's momentum for the others, learning rate 1e-3, tau = the group's standard deviation
(eta = 1), clip 0.2, no entropy bonus, a new prompt each time from all 2^H, error measured on the responses that are
trained on. Their GRPO has one clipped ratio a response (sum of the log-ratios) and 0.04 x k3 of KL(policy || the policy
that sampled). Arms "as published" are those; the others are rows of lpo-ray's tables. All arms of a seed begin with the
same weights and see the same prompts. Ours is another random number generator and another framework, so a seed of ours
is none of theirs; from the same weights and responses, TPO and GRPO take the published code's steps, number by number
(tests/benchmarks/reversal/published.py).

![Error over batches](token_reversal.png)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    path = parser.parse_args().results
    found = json.loads(path.read_text())
    runs, every = found["runs"], found["every"]
    text = HEADER.format(**found["setting"], final=FINAL) + table(runs, every)
    text += KEEPING.format(every=every, learned=LEARNED, kept=KEPT) + keeping(runs, every) + NOTES
    path.with_suffix(".md").write_text(text)
    draw(runs, every, path.with_suffix(".png"))


def table(runs: Runs, every: int) -> str:
    """Markdown: an arm a row, what was published beside what came out."""
    lines = ["| arm | " + " | ".join(f"H = {length}" for length in HORIZONS) + " |", "|---" * 5 + "|"]
    for name, arm in ARMS.items():
        cells = (cell(arm, number, runs.get(name, {}), every) for number in range(len(HORIZONS)))
        lines.append(f"| {arm.title} (`{name}`) | " + " | ".join(cells) + " |")
    for title, values in PUBLISHED_ONLY.items():
        lines.append(f"| {title}, not run | " + " | ".join(f"published {percent(value)}" for value in values) + " |")
    return "\n".join(lines) + "\n"


def cell(arm: Arm, number: int, by_length: dict[str, dict[str, dict]], every: int) -> str:
    """Of one arm at one length."""
    results = by_length.get(str(HORIZONS[number]), {}).values()
    parts = []
    if results:
        errors = 100 * np.array([np.mean(result["curve"][-FINAL // every :]) for result in results])
        spread = f" +- {errors.std(ddof=1) / math.sqrt(len(errors)):.1f}" if len(errors) > 1 else ""
        parts.append(f"{errors.mean():.1f}{spread} ({len(errors)})")
    if arm.published:
        parts.append(f"published {percent(arm.published[number])}")
    return "; ".join(parts) or "-"


def keeping(runs: Runs, every: int) -> str:
    """Markdown: how many seeds of an arm learned the task, and how many kept it."""
    lines = ["| arm | " + " | ".join(f"H = {length}" for length in HORIZONS) + " |", "|---" * 5 + "|"]
    for name, by_length in ((name, runs[name]) for name in ARMS if name in runs):
        cells = []
        for length in map(str, HORIZONS):
            curves = [result["curve"] for result in by_length.get(length, {}).values()]
            learned = sum(min(curve) < LEARNED for curve in curves)
            kept = sum(bool(np.mean(curve[-FINAL // every :]) < KEPT) for curve in curves)
            cells.append(f"{learned} → {kept} of {len(curves)}" if curves else "-")
        lines.append(f"| {ARMS[name].title} (`{name}`) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def percent(value: float | None) -> str:
    return ">95" if value is None else f"{value}"


def draw(runs: Runs, every: int, out: Path) -> None:
    """Mean error over batches with the standard error over seeds, a panel a length."""
    figure, axes = plt.subplots(1, len(HORIZONS), figsize=(17, 4.4), sharey=True, layout="constrained")
    for length, axis in zip(HORIZONS, axes, strict=True):
        for (name, arm), colour in zip(ARMS.items(), COLOURS, strict=False):
            results = runs.get(name, {}).get(str(length), {}).values()
            if not results:
                continue
            curves = 100 * np.array([result["curve"] for result in results])
            batches = every * (np.arange(curves.shape[1]) + 0.5)
            mean, spread = curves.mean(0), curves.std(0) / math.sqrt(len(curves))
            axis.plot(batches, mean, color=colour, label=f"{arm.title} ({len(curves)})", linewidth=1.4)
            axis.fill_between(batches, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
        axis.set(title=f"H = {length}", xlabel="batches", ylim=(0, 101))
    axes[0].set_ylabel("exact-match error, %")
    handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
