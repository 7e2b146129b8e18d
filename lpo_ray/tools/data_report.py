"""Data report: the first prompts of a run as the engine will get them, and what is in the data, in numbers."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.run.spec import RunSpec
from lpo_ray.tasks.sources.dataset import DatasetSource
from lpo_ray.tasks.sources.source import first_usable
from lpo_ray.tasks.sources.summary import QUANTILES, SplitSummary, summarise
from lpo_ray.tasks.table import task_named

SHOWN_PROMPTS = 10
LONGEST = 1500
"""characters of a prompt on the terminal; the middle of longer ones is left out"""
LONGEST_ANSWER = 300
SHOWN_CONTROLS = {"\n": "\n", "\t": "\\t", "\r": "\\r"}
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""categories of characters that a terminal would act on, or not show"""


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """Training prompt as it is shown.

    Example: ``ShownPrompt("train-00000000", 10, "3,4,7=5:", '{"numbers": [3, 4, 7], "target": 5}', ())``
    """

    prompt_id: str
    tokens: int
    text: str
    """token ids as text, special tokens included"""
    answer: str
    columns: tuple[str, ...]
    """that verifiers are given beside the answer"""


@dataclass(frozen=True, slots=True)
class DataReport:
    """Content of the report."""

    task: str
    about: str
    recommended: Mapping[str, object]
    verifier: str
    max_prompt_tokens: int
    prompts: tuple[ShownPrompt, ...]
    statistics: Mapping[str, SplitSummary]
    """train, and heldout where there is one"""
    alike: int | None
    """held-out prompts that are a training prompt but for case and white space (equal ones are an error); None: the
    task's generator keeps the splits apart
    """

    def to_json(self) -> dict[str, object]:
        """Return everything for --json; nothing is cut."""
        return asdict(self)


def read_data(spec: RunSpec, tokenizer: Tokenizer) -> DataReport:
    """Read the data of a run. Raises DataError."""
    task = task_named(spec.config.task.name)
    source = spec.source(tokenizer)
    prompts = first_usable(source, SHOWN_PROMPTS)
    return DataReport(
        task=spec.config.task.name,
        about=task.about,
        recommended=dict(task.recommended),
        verifier=spec.verifier,
        max_prompt_tokens=spec.max_prompt_tokens,
        prompts=tuple(
            ShownPrompt(p.prompt_id, len(p.token_ids), tokenizer.show(p.token_ids), p.answer, tuple(p.row))
            for p in prompts
        ),
        statistics=summarise(source, spec.config.evaluation.num_prompts),
        alike=source.num_alike if isinstance(source, DatasetSource) else None,
    )


def render(report: DataReport) -> RenderableType:
    """Render for a terminal: control characters escaped, long texts cut."""
    parts: list[RenderableType] = [_panel(prompt) for prompt in report.prompts]
    head = Text(f"{visible(report.task, LONGEST_ANSWER)}: {report.about}\nverifier {report.verifier}")
    if report.recommended:
        head.append(
            "\nsettings to begin with: " + " ".join(f"{key}={value}" for key, value in report.recommended.items())
        )
    legend = Text(
        f"min to max: tokens of a prompt; left out: prompts over {report.max_prompt_tokens:,} of them; unusable: "
        "prompts that are left out since the verifier cannot read their answers"
    )
    return Group(*parts, head, _table(report), legend, *_faults(report), *_alike(report))


def visible(text: str, longest: int) -> str:
    """Escape what a terminal would act on in ``text``, and cut its middle when it is longer than ``longest``."""
    if len(text) > longest:
        half = longest // 2
        left_out = len(text) - 2 * half
        return f"{_escaped(text[:half])} [... {left_out:,} characters ...] {_escaped(text[-half:])}"
    return _escaped(text)


def _escaped(text: str) -> str:
    return "".join(
        SHOWN_CONTROLS.get(character) or character.encode("unicode_escape", "backslashreplace").decode()
        if unicodedata.category(character) in HIDDEN
        else character
        for character in text
    )


def _panel(prompt: ShownPrompt) -> Panel:
    body = Text(visible(prompt.text, LONGEST))
    body.append("\nanswer  ", style="dim").append(visible(prompt.answer, LONGEST_ANSWER) or "none")
    if prompt.columns:
        body.append("\ncolumns  ", style="dim").append(visible(", ".join(prompt.columns), LONGEST_ANSWER))
    title = Text(f"{prompt.prompt_id}  {prompt.tokens:,} tokens")
    return Panel(body, title=title, title_align="left")


def _table(report: DataReport) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("", "rows", "left out", "unusable", "duplicates", *QUANTILES):
        table.add_column(name, justify="left" if not name else "right")
    for split, found in report.statistics.items():
        rows = f"first {found.rows:,}" if found.sampled else f"{found.rows:,}"
        numbers = (found.left_out, found.unusable, found.duplicates, *found.tokens.values())
        table.add_row(split, rows, *(f"{number:,}" for number in numbers))
    return table


def _faults(report: DataReport) -> list[RenderableType]:
    lines = [
        f"{split}, row {row}: {visible(fault, LONGEST_ANSWER)}"
        for split, found in report.statistics.items()
        for row, fault in found.faults.items()
    ]
    return [Text("\n".join(lines), style="yellow")] if lines else []


def _alike(report: DataReport) -> list[RenderableType]:
    if report.alike is None or "heldout" not in report.statistics:
        return []
    return [Text(f"held-out prompts in training: 0 equal, {report.alike:,} but for case and white space")]
