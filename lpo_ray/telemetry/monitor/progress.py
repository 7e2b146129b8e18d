"""Progress of a run on the terminal: a live panel, or one line a step where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lpo_ray.config.schema import ProgressKind
from lpo_ray.records import Evaluation
from lpo_ray.telemetry.log import DRIVER, LogLine
from lpo_ray.telemetry.metrics import Value
from lpo_ray.telemetry.monitor.panel import SHOWN, Panel, number
from lpo_ray.telemetry.stage_clock import StageClock


class Progress:
    """Face of a run. Shows nothing when ``kind`` is quiet."""

    def __init__(self, kind: ProgressKind, console: Console, clock: StageClock, run: str, steps: int) -> None:
        """Show the run, whose ``kind`` of progress auto stands for live in a terminal and plain elsewhere."""
        if kind is ProgressKind.auto:
            kind = ProgressKind.live if console.is_terminal else ProgressKind.plain
        self._kind, self._console = kind, console
        self._panel = Panel(run, steps, clock)
        self._live = Live(self._panel, console=console, refresh_per_second=4, transient=True)
        if kind is ProgressKind.live:
            self._live.start()

    def resumed(self, rows: Iterable[Mapping[str, Value]]) -> None:
        """Begin the panel's curves with the steps that were done before."""
        self._panel.resumed(rows)

    def step(self, metrics: Mapping[str, Value], line: LogLine) -> None:
        """Show a step that is done; ``line`` says so where there is no panel."""
        self._panel.step(metrics)
        if self._kind is ProgressKind.plain:
            self.say(line)

    def say(self, line: LogLine) -> None:
        """Print a line if it is for the user: above the panel, without what the panel's reader knows."""
        if self._kind is ProgressKind.quiet or not line.is_shown:
            return
        bare = self._kind is ProgressKind.live and line.role == DRIVER
        for part in line.lines():
            text = part.text if bare else part.render()
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def doing(self, text: str) -> None:
        """Show how far the stage at work is, such as "12/256 prompts"; live panel only."""
        self._panel.note = text

    def close(self) -> None:
        """Give the terminal back."""
        if self._live.is_started:
            self._live.stop()


def step_line(metrics: Mapping[str, Value], steps: int) -> str:
    """Return a step in one line: its numbers, and where its time went."""
    stages = "  ".join(
        f"{stage} {number(metrics, f'seconds_{stage}'):.1f}" for stage in ("sample", "verify", "project", "publish")
    )
    shown = "  ".join(form.format(number(metrics, name)) for name, form in SHOWN.items())
    return f"step {metrics['step']}/{steps}  {shown}  {number(metrics, 'seconds'):.1f} s ({stages})"


def render_evaluation(before: Evaluation, after: Evaluation) -> Table:
    """Make a table of pass@k before and after, with 95 % intervals over prompts; of conversations their turns, too."""
    title = f"held-out: {after.num_prompts} prompts x {after.samples_per_prompt} samples, 95 % intervals over prompts"
    table = Table(title=title, title_justify="left")
    for column in ("", "before", "after", "difference"):
        table.add_column(column, justify="left" if not column else "right")
    for k in after.pass_at:
        cells = [f"{e.pass_at[k]:.3f} [{e.ci95[k][0]:.3f}, {e.ci95[k][1]:.3f}]" for e in (before, after)]
        table.add_row(f"pass@{k}", *cells, f"{after.pass_at[k] - before.pass_at[k]:+.3f}")
    for name in (name for name in after.of_turns if name in before.of_turns):
        values = [e.of_turns[name] for e in (before, after)]
        cells = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, (low, high) in values]
        table.add_row(name.replace("_", " "), *cells, f"{values[1][0] - values[0][0]:+.3f}")
    return table
