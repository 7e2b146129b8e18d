"""Table of an evaluation, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lpo_ray.evaluation.breakdown import CAVEAT
from lpo_ray.evaluation.report import Estimate, Lengths, Measures, Report, ks_shown

SHOWN_LOST = 10
"""most lost prompts that are named; results.json names all"""
SHOWN_GROUPS = 20


def render(report: Report) -> RenderableType:
    """Render the whole report."""
    overall = report.overall
    n = overall.samples_per_prompt
    head = f"{report.title}: {overall.num_prompts} prompts x {n} responses, 95 % intervals over prompts"
    parts: list[RenderableType] = [Text(head, style="bold"), _estimates(overall)]
    parts += [_groups(name, groups, n) for name, groups in report.by.items()]
    parts += [Text(CAVEAT, style="dim"), _lengths(report.lengths)]
    if report.lost:
        parts.append(_lost(report.lost))
    return Group(*parts)


def render_suite(reports: Mapping[str, Report]) -> Table:
    """Make a table with a row for each task of a suite."""
    table = _table("task", "prompts", "n", "avg@n (= pass@1)", "pass@n", "maj@n", "tokens", "truncated", "lost")
    for name, report in reports.items():
        table.add_row(name, *_row(report.overall, with_n=True), str(len(report.lost)))
    return table


def _estimates(measures: Measures) -> Table:
    n, found = measures.samples_per_prompt, measures.estimates
    table = _table("", "value", "95 %")
    names = {
        **{f"pass@{k}": f"pass@{k}" for k in ks_shown(n)},
        f"avg@{n}": f"avg@{n}",
        f"maj@{n}": f"maj@{n}",
        "mean_reward": "mean reward",
        "distinct_answers": f"distinct answers of {n}",
        "answer_entropy": "entropy of answers (nats)",
        "unanswered": "responses without an answer",
        "length": "tokens",
        "truncated": "truncated",
    }
    turns = (name for name in found if name == "turns" or name.startswith("solved_in_turn_"))
    names |= {name: name.replace("_", " ") for name in turns}
    for name, label in names.items():
        estimate = found[name]
        digits = 1 if name == "length" else 3
        table.add_row(label, f"{estimate.value:.{digits}f}", f"[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]")
    return table


def _groups(by: str, groups: Mapping[str, Measures], n: int) -> Table:
    table = _table(f"by {by}", "prompts", f"avg@{n}", f"pass@{n}", f"maj@{n}", "tokens", "truncated")
    for name, measures in list(groups.items())[:SHOWN_GROUPS]:
        table.add_row(Text(name), *_row(measures))
    if len(groups) > SHOWN_GROUPS:
        table.add_row(Text(f"and {len(groups) - SHOWN_GROUPS} more, in results.json"))
    return table


def _row(measures: Measures, *, with_n: bool = False) -> list[str]:
    n, found = measures.samples_per_prompt, measures.estimates
    scores = [_with_interval(found[name]) for name in (f"avg@{n}", f"pass@{n}", f"maj@{n}")]
    return [
        str(measures.num_prompts), *([str(n)] if with_n else []), *scores, f"{found['length'].value:.0f}",
        f"{found['truncated'].value:.1%}",
    ]  # fmt: skip


def _lengths(lengths: Mapping[str, Lengths]) -> Table:
    table = _table("tokens of responses", "responses", "mean", *lengths["all"].quantiles, "longest", "truncated")
    for name, found in lengths.items():
        if found.mean is None or found.truncated is None:
            continue
        quantiles = [f"{value}" for value in found.quantiles.values()]
        table.add_row(
            name,
            str(found.num_responses),
            f"{found.mean:.1f}",
            *quantiles,
            str(found.longest),
            f"{found.truncated:.1%}",
        )
    return table


def _lost(lost: Mapping[str, str]) -> Text:
    lines = [f"{prompt_id}: {reason}" for prompt_id, reason in list(lost.items())[:SHOWN_LOST]]
    more = [f"and {len(lost) - SHOWN_LOST} more, in results.json"] if len(lost) > SHOWN_LOST else []
    head = f"{len(lost)} prompts were lost and are in no number above (the same command tries them again):"
    return Text("\n".join([head, *lines, *more]), style="yellow")


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} \\[{estimate.low:.3f}, {estimate.high:.3f}]"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if number else "left")
    return table
