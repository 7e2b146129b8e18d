"""The files of a comparison: comparison.html (self-contained), comparison.md and .json, curves.svg and .png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lpo_ray.comparison.findings import Difference, Findings, Results, find
from lpo_ray.comparison.pictures import WINDOW, draw
from lpo_ray.comparison.tables import Table, tables_of
from lpo_ray.errors import RunFailed
from lpo_ray.telemetry.report import svg_of
from lpo_ray.telemetry.sinks import write_json, write_text


@dataclass(frozen=True, slots=True)
class Background:
    """What the reader of a comparison has to know beside the results."""

    name: str
    in_common: Mapping[str, str]
    """see study.in_common"""
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
    figure = draw(results, ks)
    svg = svg_of(figure)
    write_text(folder / "curves.svg", svg)
    FigureCanvasAgg(figure).print_png(folder / "curves.png", metadata={"Software": None})
    write_json(folder / "comparison.json", {**_as_json(findings), "conditions": conditions})
    write_text(folder / "comparison.md", _markdown(tables, conditions, background))
    page = (
        Environment(loader=PackageLoader("lpo_ray", "."), autoescape=True)
        .get_template("comparison/comparison.html.j2")
        .render(background=background, conditions=conditions, tables=tables, curves=Markup(svg), window=WINDOW)
    )
    write_text(folder / "comparison.html", page)
    return tables


def _markdown(tables: Sequence[Table], conditions: Sequence[str], background: Background) -> str:
    failed = "".join(f"- failed: {error.run}, exit code {error.code}\n" for error in background.failed)
    said = "".join(f"- {condition}\n" for condition in conditions)
    body = "\n".join(table.markdown() for table in tables)
    return f"## {background.name}\n\n{said}{failed}\n{body}\n![curves](curves.svg)\n"


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
