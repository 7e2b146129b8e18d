"""Terminal of the commands: widths, progress, and events of commands that record no run."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lpo_ray.common.redaction import redact
from lpo_ray.records import WorkerStatus
from lpo_ray.run.spec import RunSpec, build_model
from lpo_ray.tasks import base_policy

TABLE_WIDTH = 160
"""columns of a table where the output is no terminal"""
ROW_WIDTH = 200
"""columns of a table that is not cut where the output is no terminal"""
PARTS = 10
"""of a warm start: a line after each where the output is no terminal"""


class StandardError:
    """Events of a command that records no run, as lines on standard error."""

    def note(self, text: str) -> None:
        """Write one line."""
        sys.stderr.write(f"{redact(text)}\n")

    def workers(self, workers: Sequence[WorkerStatus]) -> None:
        """Write nothing: what needs a reader's attention is noted."""

    def measured(self, values: Mapping[str, int]) -> None:
        """Write nothing: nobody draws curves of it."""

    def starting(self, name: str, seconds: float) -> AbstractContextManager[None]:
        """Show nothing: a command that records no run has no watchdog."""
        return contextlib.nullcontext()


def progress_bar(console: Console) -> Progress:
    """Make a bar that is gone when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def model_of(spec: RunSpec, console: Console) -> str:
    """Return the model's folder. The tiny base policy is built when it is not cached, and its progress shown."""
    if spec.model_path is not None:
        return spec.model_path
    started = time.monotonic()
    with _warm_start(console) as show:
        path = build_model(spec, show)
    console.print(f"base policy: {path}  ({time.monotonic() - started:.0f} s)", highlight=False, soft_wrap=True)
    return path


@contextlib.contextmanager
def _warm_start(console: Console) -> Iterator[base_policy.Progress]:
    """Show a warm start while it runs: a bar in a terminal, else a line after each tenth of its steps."""
    if not console.is_terminal:
        yield lambda step, steps, loss: _print_part(console, step, steps, loss)
        return
    with progress_bar(console) as progress:
        task = progress.add_task("warm start of the base policy", total=None, start=False)

        def show(step: int, steps: int, loss: float) -> None:
            progress.start_task(task)
            progress.update(task, completed=step, total=steps, description=f"warm start, loss {loss:.3f}")

        yield show


def _print_part(console: Console, step: int, steps: int, loss: float) -> None:
    if step == 1 or step * PARTS // steps > (step - 1) * PARTS // steps:
        console.print(f"warm start of the base policy: step {step}/{steps}, loss {loss:.3f}", highlight=False)
