"""What a run shows while it goes on: a live panel on a terminal, one line a step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lpo_ray.config.schema import ProgressKind
from lpo_ray.evaluation import Evaluation
from lpo_ray.telemetry.log import DRIVER, LogLine
from lpo_ray.telemetry.metrics import Value
from lpo_ray.telemetry.stage_clock import StageClock

SHOWN = {
    "reward": "reward {:.3f}",
    "pass_rate": "pass {:.3f}",
    "token_entropy": "entropy {:.3f}",
    "gradient_norm": "grad {:.2f}",
    "tokens_per_second": "{:.0f} tok/s",
}
"""metrics of the step line, in order"""
_VERBS = {
    "start": "starting the components",
    "sample": "sampling",
    "verify": "verifying",
    "anchor": "building targets",
    "project": "projecting",
    "publish": "publishing weights",
    "checkpoint": "saving a checkpoint",
    "evaluate": "evaluating",
}


class Progress:
    """The run's face. Shows nothing when ``kind`` is quiet."""

    def __init__(self, kind: ProgressKind, console: Console, clock: StageClock, steps: int) -> None:
        if kind is ProgressKind.auto:
            kind = ProgressKind.live if console.is_terminal else ProgressKind.plain
        self._kind, self._console, self._clock, self._steps = kind, console, clock, steps
        self._step, self._line, self._note = 0, "", ""
        self._since = time.monotonic()
        self._live = Live(get_renderable=self._panel, console=console, refresh_per_second=4, transient=True)
        if kind is ProgressKind.live:
            self._live.start()

    def step(self, metrics: Mapping[str, Value], line: LogLine) -> None:
        """A step is done; ``line`` says so where there is no panel."""
        self._step, self._line = int(str(metrics["step"])), _shown(metrics)
        if self._kind is ProgressKind.plain:
            self.say(line)

    def say(self, line: LogLine) -> None:
        """Something that happened once; printed above the panel, without what the panel's reader knows."""
        if self._kind is ProgressKind.quiet or not line.is_shown:
            return
        bare = self._kind is ProgressKind.live and line.role == DRIVER
        for part in line.lines():
            text = part.text if bare else part.render()
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def doing(self, text: str) -> None:
        """How far the stage at work is, such as "evaluating 12/256"; live panel only."""
        self._note = text

    def close(self) -> None:
        """Give the terminal back."""
        if self._live.is_started:
            self._live.stop()

    def _panel(self) -> RenderableType:
        working = [
            _VERBS[name] + (f" {count} groups" if name in ("sample", "verify") else "")
            for name, count in self._clock.active().items()
        ]
        elapsed = time.monotonic() - self._since
        head = Text(f"step {self._step}/{self._steps}  {self._line}  {elapsed:.0f} s")
        bar = ProgressBar(total=self._steps, completed=self._step, width=60)
        panel = Table.grid()  # rows of a grid: a bare ProgressBar does not end its line
        for row in (head, bar, Text(f"{', '.join(working) or 'waiting'}  {self._note}", style="dim")):
            panel.add_row(row)
        return panel


def step_line(metrics: Mapping[str, Value], steps: int) -> str:
    """A step in one line: its numbers, and where its time went."""
    stages = "  ".join(
        f"{stage} {float(str(metrics[f'seconds_{stage}'])):.1f}" for stage in ("sample", "verify", "project", "publish")
    )
    seconds = float(str(metrics["seconds"]))
    return f"step {metrics['step']}/{steps}  {_shown(metrics)}  {seconds:.1f} s ({stages})"


def _shown(metrics: Mapping[str, Value]) -> str:
    return "  ".join(form.format(float(str(metrics[name]))) for name, form in SHOWN.items())


def render_evaluation(before: Evaluation, after: Evaluation) -> Table:
    """Pass@k before and after, with 95 % intervals over prompts."""
    title = f"held-out: {after.num_prompts} prompts x {after.samples_per_prompt} samples, 95 % intervals over prompts"
    table = Table(title=title, title_justify="left")
    for column in ("", "before", "after", "difference"):
        table.add_column(column, justify="left" if not column else "right")
    for k in after.pass_at:
        cells = [f"{e.pass_at[k]:.3f} [{e.ci95[k][0]:.3f}, {e.ci95[k][1]:.3f}]" for e in (before, after)]
        table.add_row(f"pass@{k}", *cells, f"{after.pass_at[k] - before.pass_at[k]:+.3f}")
    return table
