"""Pictures of a comparison. Curves: a row for each setting, a column for each measure, a line for each divergence.
Trades: what each arm gives in pass@1 against what in pass@k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpo_ray.telemetry.monitor.charts import PALETTE
from lpo_ray.telemetry.monitor.report import tidy
from lpo_ray.tools.compare.bootstrap import Interval, band
from lpo_ray.tools.compare.findings import Results
from lpo_ray.tools.compare.grid import Arm
from lpo_ray.tools.compare.outcome import ArmResult

WINDOW = 5
"""steps over which metrics of steps are averaged, for the eye, unless there are few"""
METRICS = {
    "token_entropy": "token entropy (nats)",
    "gradient_norm": "gradient norm",
    "response_length": "response length (tokens)",
}


def draw(results: Results, ks: Sequence[int]) -> Figure:
    """Draw means over seeds, and bands from the smallest to the largest seed."""
    settings = list(dict.fromkeys(arm.setting for arm in results))
    divergences = list(dict.fromkeys(arm.divergence for arm in results))
    columns = len(ks) + len(METRICS)
    figure = Figure(figsize=(3.1 * columns, 2.5 * len(settings) + 0.5), layout="constrained")
    panels = figure.subplots(len(settings), columns, squeeze=False)
    for row, setting in enumerate(settings):
        for number, divergence in enumerate(divergences):
            arm = Arm(divergence, setting)
            if outcomes := list(results.get(arm, {}).values()):
                _draw_arm(panels[row], outcomes, ks, divergence, PALETTE[number % len(PALETTE)])
        titles = [*(f"pass@{k}" for k in ks), *METRICS.values()]
        for axes, title in zip(panels[row], titles, strict=True):
            axes.set_title(title, fontsize=9)
            tidy(axes)
        arm = Arm(divergences[0], setting)
        panels[row][0].set_ylabel(f"{arm.axes_label}: {arm.setting_label}" if setting else "", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=max(1, len(labels)))
    return figure


@dataclass(frozen=True, slots=True)
class Trade:
    """Arm beside the first one."""

    arm: str
    across: Interval
    """difference in the smallest k"""
    up: Interval
    """in the largest"""


def draw_trades(panels: Mapping[str, Sequence[Trade]], first: str, ks: Sequence[int]) -> Figure:
    """Draw panels: title -> its arms, the same in each. ``first``: the arm at (0, 0)."""
    figure = Figure(figsize=(6 * len(panels) + 2.5, 5.2), layout="constrained")
    for axes, (title, trades) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.plot(0, 0, "k*", markersize=13, label=first)
        for number, trade in enumerate(trades, 1):
            _draw_trade(axes, number, trade)
        axes.set(xlabel=f"pass@{min(ks)} {title}, difference", ylabel=f"pass@{max(ks)} {title}, difference")
        tidy(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _draw_trade(axes: Axes, number: int, trade: Trade) -> None:
    x, y = trade.across, trade.up
    axes.errorbar(
        x.mean, y.mean, xerr=[[x.mean - x.low], [x.high - x.mean]], yerr=[[y.mean - y.low], [y.high - y.mean]],
        fmt="o", color=PALETTE[(number - 1) % len(PALETTE)], markersize=6, elinewidth=0.6,
        label=f"{number} {trade.arm}",
    )  # fmt: skip
    axes.annotate(str(number), (x.mean, y.mean), xytext=(5, 4), textcoords="offset points", fontsize=10)


def _draw_arm(
    panels: Sequence[Axes], outcomes: Sequence[ArmResult], ks: Sequence[int], label: str, colour: str
) -> None:
    steps = sorted(set.intersection(*(set(outcome.num_correct) for outcome in outcomes)))
    for axes, k in zip(panels, ks, strict=False):
        lines = [[_pass_at(outcome, k, step) for step in steps] for outcome in outcomes]
        _line(axes, np.array(steps), np.array(lines), label, colour, marker="o")
    for axes, metric in zip(panels[len(ks) :], METRICS, strict=True):
        length = min(len(outcome.curves[metric]) for outcome in outcomes)
        window = WINDOW if length >= 2 * WINDOW else 1
        kernel = np.ones(window) / window
        lines = np.array([np.convolve(outcome.curves[metric][:length], kernel, mode="valid") for outcome in outcomes])
        _line(axes, np.arange(lines.shape[1]) + window, lines, label, colour)


def _line(axes: Axes, steps: np.ndarray, lines: np.ndarray, label: str, colour: str, marker: str | None = None) -> None:
    mean, low, high = band(lines)
    axes.plot(steps, mean, color=colour, label=label, linewidth=1.6, marker=marker, markersize=3)
    axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)


def _pass_at(outcome: ArmResult, k: int, step: int) -> float:
    return float(np.mean(outcome.pass_at(k, step, sorted(outcome.num_correct[step]))))
