"""The files of a comparison: comparison.html (self-contained), comparison.md and .json; curves and trades, .svg and
.png.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lpo_ray.common.files import write_json, write_text
from lpo_ray.errors import RunFailed
from lpo_ray.telemetry.monitor.report import svg_of
from lpo_ray.tools.compare.findings import WHEN, Difference, Findings, Measure, Results, find
from lpo_ray.tools.compare.pictures import WINDOW, Trade, draw, draw_trades
from lpo_ray.tools.compare.tables import Table, tables_of


@dataclass(frozen=True, slots=True)
class Background:
    """Facts that the reader of a comparison needs beside the results."""

    name: str
    in_common: Mapping[str, str]
    """what all arms share, from study.in_common"""
    failed: Sequence[RunFailed]
    config: str
    """resolved YAML that all runs began from"""


def write_comparison(folder: Path, results: Results, ks: Sequence[int], background: Background) -> list[Table]:
    """Write all files into ``folder``; returns the tables. ValueError when there are no results."""
    if not any(results.values()):
        raise ValueError("no run has finished; expected at least one")
    findings = find(results, ks)
    tables = tables_of(findings)
    conditions = [f"{aspect}: {how}" for aspect, how in background.in_common.items()] + list(findings.checks)
    pictures = {"curves": _keep(draw(results, ks), folder / "curves")}
    if findings.to_first and len(set(ks)) > 1:
        pictures["trades"] = _keep(_trades(findings, ks), folder / "trades")
    write_json(folder / "comparison.json", {**_as_json(findings), "conditions": conditions})
    write_text(folder / "comparison.md", _markdown(tables, conditions, background, pictures))
    page = (
        Environment(loader=PackageLoader("lpo_ray", "."), autoescape=True)
        .get_template("tools/compare/comparison.html.j2")
        .render(background=background, conditions=conditions, tables=tables, pictures=pictures, window=WINDOW)
    )
    write_text(folder / "comparison.html", page)
    return tables


def _keep(figure: Figure, path: Path) -> Markup:
    """Save a figure as .svg, which is returned, and as .png."""
    svg = svg_of(figure)
    write_text(path.with_suffix(".svg"), svg)
    FigureCanvasAgg(figure).print_png(path.with_suffix(".png"), metadata={"Software": None})
    return Markup(svg)


def _trades(findings: Findings, ks: Sequence[int]) -> Figure:
    panels = {
        when: [
            Trade(
                found.arm.label,
                found.by[Measure(min(ks), over_curve=over_curve)],
                found.by[Measure(max(ks), over_curve=over_curve)],
            )
            for found in findings.to_first
        ]
        for over_curve, when in WHEN.items()
    }
    return draw_trades(panels, findings.to_first[0].than.label, ks)


def _markdown(
    tables: Sequence[Table], conditions: Sequence[str], background: Background, pictures: Iterable[str]
) -> str:
    failed = "".join(f"- failed: {error.run}, exit code {error.code}\n" for error in background.failed)
    said = "".join(f"- {condition}\n" for condition in conditions)
    body = "\n".join(table.markdown() for table in tables)
    shown = "".join(f"\n![{name}]({name}.svg)\n" for name in pictures)
    return f"## {background.name}\n\n{said}{failed}\n{body}{shown}"


def _as_json(findings: Findings) -> dict[str, object]:
    def difference(found: Difference | None) -> dict[str, object] | None:
        if found is None:
            return None
        by = {measure.label: asdict(interval) for measure, interval in found.by.items()}
        return {"than": found.than.name, "seeds": found.num_seeds, "by": by}

    return {
        "arms": [
            {
                "divergence": found.arm.divergence,
                "setting": dict(found.arm.setting),
                "seeds": found.num_seeds,
                "scores": {measure.label: value for measure, value in found.scores.items()},
                "metrics": dict(found.metrics),
                "difference": difference(found.difference),
            }
            for found in findings.arms
        ],
        "parts": [
            {"setting": dict(part.arm.setting), "meaning": part.meaning, **(difference(part) or {})}
            for part in findings.parts
        ],
        "to_first": [{"arm": found.arm.name, **(difference(found) or {})} for found in findings.to_first],
        "wins": [
            {
                "divergence": wins.divergence,
                "settings": wins.settings,
                "wins": {measure.label: count for measure, count in wins.wins.items()},
                "clear": {measure.label: count for measure, count in wins.clear.items()},
            }
            for wins in findings.wins
        ],
    }
