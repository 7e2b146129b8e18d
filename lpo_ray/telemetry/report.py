"""report.html: one self-contained page of a run; curves are inline SVG, nothing is fetched."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lpo_ray.telemetry.metrics import Value
from lpo_ray.telemetry.sinks import MetricsLog, write_text

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Okabe and Ito: told apart by colour-blind readers too"""


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure: metrics over steps. ``stacked`` draws shares of their sum."""

    title: str
    unit: str
    series: Mapping[str, str]
    """metric -> label"""
    stacked: bool = False


CHARTS = (
    Chart("Reward", "per response", {"reward": "mean reward", "pass_rate": "pass rate"}),
    Chart("Pass@k on held-out prompts", "probability", {}),
    Chart("Entropy", "nats", {"token_entropy": "per token", "target_entropy": "H(w*)", "policy_entropy": "H(P)"}),
    Chart(
        "Gain of the projection", "reward",
        {"predicted_gain": "predicted: tau Jeffreys", "realised_gain": "realised before the update"},
    ),
    Chart("Projection gap", "nats", {"kl_target_policy": "KL(w*||P)", "kl_policy_target": "KL(P||w*)"}),
    Chart("Gradient norm", "before clipping", {"gradient_norm": "gradient norm"}),
    Chart(
        "Update over weights", "ratio of norms",
        {f"update_ratio_{kind}": kind for kind in ("embedding", "attention", "mlp", "norm", "head")},
    ),
    Chart(
        "Fractions", "of groups or tokens",
        {"equal_reward_fraction": "equal-reward groups", "clip_fraction": "clipped tokens",
         "truncated_fraction": "truncated responses"},
    ),
    Chart("Response length", "tokens", {"response_length": "mean"}),
    Chart("Staleness", "steps", {"staleness": "mean", "staleness_max": "oldest group"}),
    Chart(
        "Effective sample size", "responses",
        {"effective_sample_size": "mean of groups", "effective_sample_size_min": "smallest"},
    ),
    Chart(
        "Behaviour against policy", "nats",
        {"anchor_drift": "mean drift of a token", "mismatch_kl": "KL (k3)"},
    ),
    Chart("Throughput", "response tokens per second", {"tokens_per_second": "whole step"}),
    Chart(
        "Where the time goes", "share of the step",
        {f"seconds_{stage}": stage for stage in ("sample", "verify", "anchor", "project", "publish", "wait")},
        stacked=True,
    ),
    Chart(
        "What the engines do", "share of the step",
        {f"engines_{stage}": stage for stage in ("sample", "verify", "publish", "evaluate", "wait")},
        stacked=True,
    ),
    Chart(
        "What the learner does", "share of the step",
        {f"learner_{stage}": stage for stage in ("anchor", "project", "publish", "checkpoint", "evaluate", "wait")},
        stacked=True,
    ),
)  # fmt: skip


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from the run's own files; works for a run that has just begun or was cut short."""
    rows = MetricsLog(folder / "metrics.jsonl").read()
    summary = _read_json(folder / "summary.json")
    stored = cast("Mapping[str, Mapping[str, object]]", _read_json(folder / "evaluations.json"))
    evaluations = {int(step): value for step, value in stored.items()}
    config = folder / "config.yaml"
    page = (
        Environment(loader=PackageLoader("lpo_ray.telemetry", "."), autoescape=True)
        .get_template("report.html.j2")
        .render(
            name=summary.get("run", folder.name),
            summary=summary,
            evaluations=sorted(evaluations.items()),
            last=rows[-1] if rows else {},
            charts=[(chart.title, Markup(_draw(chart, rows, evaluations))) for chart in CHARTS],
            config=config.read_text(encoding="utf-8") if config.exists() else "",
        )
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def _draw(chart: Chart, rows: Sequence[Mapping[str, Value]], evaluations: Mapping[int, Mapping[str, object]]) -> str:
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    steps = [float(str(row["step"])) for row in rows]
    values = {
        label: [float("nan") if row.get(name) is None else float(str(row[name])) for row in rows]
        for name, label in chart.series.items()
        if any(name in row for row in rows)
    }
    marker = "o" if len(steps) == 1 else None
    if chart.stacked and values:
        totals = [sum(column) or 1.0 for column in zip(*values.values(), strict=True)]
        shares = [[value / total for value, total in zip(line, totals, strict=True)] for line in values.values()]
        axes.stackplot(steps, *shares, labels=list(values), colors=PALETTE)
        axes.set_ylim(0, 1)
    elif chart.series:
        for colour, (label, line) in zip(PALETTE, values.items(), strict=False):
            axes.plot(steps, line, label=label, color=colour, linewidth=1.6, marker=marker)
    else:
        _draw_evaluations(axes, evaluations)
    axes.set_xlabel("step")
    axes.set_ylabel(chart.unit)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    labels = len(axes.get_legend_handles_labels()[0])
    if chart.stacked and labels:
        figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=labels)
    elif labels > 1:
        axes.legend(frameon=False, fontsize=8, loc="best")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _draw_evaluations(axes, evaluations: Mapping[int, Mapping[str, object]]) -> None:  # noqa: ANN001 - matplotlib Axes
    steps = sorted(evaluations)
    names = [name for name in next(iter(evaluations.values()), {}) if name.startswith("pass@")]
    for colour, name in zip(PALETTE, names, strict=False):
        points = [float(str(evaluations[step][name])) for step in steps]
        bounds = [evaluations[step]["ci95"][name] for step in steps]  # type: ignore[index]
        below = [point - low for point, (low, _) in zip(points, bounds, strict=True)]
        above = [high - point for point, (_, high) in zip(points, bounds, strict=True)]
        axes.errorbar(steps, points, yerr=[below, above], label=name, color=colour, marker="o", capsize=3)
    axes.set_ylim(0, 1)


def _read_json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
