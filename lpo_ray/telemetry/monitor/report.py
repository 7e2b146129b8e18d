"""Report of a run, report.html: one self-contained page; curves are inline SVG, nothing is fetched."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lpo_ray.common.files import write_text
from lpo_ray.telemetry.monitor.charts import PALETTE, Chart, charts_of
from lpo_ray.telemetry.sinks import MetricsLog, Value


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from the run's own files; works for a run that has just begun or was cut short."""
    rows = MetricsLog(folder / "metrics.jsonl").read()
    summary = _read_json(folder / "summary.json")
    stored = cast("Mapping[str, Mapping[str, object]]", _read_json(folder / "evaluations.json"))
    evaluations = {int(step): value for step, value in stored.items()}
    config = folder / "config.yaml"
    page = (
        Environment(loader=PackageLoader("lpo_ray", "."), autoescape=True)
        .get_template("telemetry/monitor/report.html.j2")
        .render(
            name=summary.get("run", folder.name),
            summary=summary,
            evaluations=sorted(evaluations.items()),
            last=rows[-1] if rows else {},
            charts=[(chart.title, chart.about, Markup(_draw(chart, rows, evaluations))) for chart in charts_of(rows)],
            config=config.read_text(encoding="utf-8") if config.exists() else "",
        )
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def _draw(chart: Chart, rows: Sequence[Mapping[str, Value]], evaluations: Mapping[int, Mapping[str, object]]) -> str:
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
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
    tidy(axes)
    labels = len(axes.get_legend_handles_labels()[0])
    if chart.stacked and labels:
        figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=labels)
    elif labels > 1:
        axes.legend(frameon=False, fontsize=8, loc="best")
    return svg_of(figure)


def tidy(axes: Axes) -> None:
    """Give the axes the look of all our charts."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def svg_of(figure: Figure) -> str:
    """Return the figure as SVG, for a page or for a file of its own."""
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _draw_evaluations(axes: Axes, evaluations: Mapping[int, Mapping[str, object]]) -> None:
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
