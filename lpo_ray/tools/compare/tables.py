"""The tables of a comparison: rows of text, made once, shown in the terminal, as markdown and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable

from lpo_ray.tools.compare.bootstrap import Interval
from lpo_ray.tools.compare.findings import LAST_STEPS, Difference, Findings, Found


@dataclass(frozen=True, slots=True)
class Table:
    """Table of text by rows."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> RichTable:
        """Render for the terminal."""
        table = RichTable(title=self.title, title_justify="left", caption=self.note, caption_justify="left")
        for name in self.header:
            table.add_column(name, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Render as markdown, for a README."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        return f"### {self.title}\n\n{body}\n\n{self.note}\n"


def tables_of(findings: Findings) -> list[Table]:
    """Make the tables in the order in which a reader asks."""
    tables = [_arms(findings), _baselines(findings), _parts(findings), _to_first(findings), _wins(findings)]
    return [table for table in tables if table.rows]


def _arms(findings: Findings) -> Table:
    return Table(
        "Arms",
        "Means over seeds. Entropy (nats per token), gradient norm and length (tokens) are means over the last "
        f"{LAST_STEPS} steps of training.",
        [
            _axes(findings),
            "divergence",
            "seeds",
            *(m.label for m in findings.measures),
            "entropy",
            "gradient",
            "length",
        ],
        [_arm(found, findings) for found in findings.arms],
    )


def _arm(found: Found, findings: Findings) -> list[str]:
    numbers = found.metrics
    return [
        found.arm.setting_label,
        found.arm.divergence,
        str(found.num_seeds),
        *(f"{found.scores[measure]:.3f}" for measure in findings.measures),
        f"{numbers['token_entropy']:.3f}",
        f"{numbers['gradient_norm']:.3f}",
        f"{numbers['response_length']:.1f}",
    ]


def _baselines(findings: Findings) -> Table:
    return Table(
        "Arms minus their baselines",
        "The baseline is first_order of the same setting, on the same prompts and seeds. 95 % intervals from "
        "resampling seeds and prompts together; between stars, or bold, where the interval excludes 0.",
        _columns(findings, "difference"),
        [_row(found.difference, found.difference.pair, findings) for found in findings.arms if found.difference],
    )


def _parts(findings: Findings) -> Table:
    return Table(
        "Where the difference comes from",
        "first_order_beta is first_order with the weights that forward KL gives to prompts; with binary rewards and "
        "on-policy it equals forward KL. So its difference to first_order is what the weighting of prompts does, and "
        "that of forward_kl to it is what the projection does beyond that.",
        _columns(findings, "part"),
        [_row(part, part.meaning, findings) for part in findings.parts],
    )


def _to_first(findings: Findings) -> Table:
    return Table(
        "Arms minus the first of the grid",
        "What changing the first arm into another one gives, settings included; on the same seeds and, where settings "
        "share them, the same prompts. Of twenty intervals one excludes 0 by chance.",
        _columns(findings, "difference"),
        [_row(found, found.pair, findings) for found in findings.to_first],
    )


def _columns(findings: Findings, what: str) -> list[str]:
    """Name the columns of the tables whose rows _row makes."""
    return [_axes(findings), what, "seeds", *(measure.label for measure in findings.measures)]


def _row(difference: Difference, name: str, findings: Findings) -> list[str]:
    return [
        difference.arm.setting_label,
        name,
        str(difference.num_seeds),
        *(shown(difference.by[measure]) for measure in findings.measures),
    ]


def _axes(findings: Findings) -> str:
    return findings.arms[0].arm.axes_label


def _wins(findings: Findings) -> Table:
    return Table(
        "Settings won",
        "As the paper counts: settings in which the mean is above that of the matched baseline; in brackets those "
        "whose interval excludes 0.",
        ["divergence", *(measure.label for measure in findings.measures)],
        [
            [
                wins.divergence,
                *(f"{wins.wins[m]} of {wins.settings} ({wins.clear[m]})" for m in findings.measures),
            ]
            for wins in findings.wins
        ],
    )


def shown(interval: Interval) -> str:
    """Write an interval, for example "+0.021 [+0.003, +0.040]", in bold stars when the sign is clear."""
    text = f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"**{text}**" if interval.excludes_zero else text
