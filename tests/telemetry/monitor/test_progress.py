"""What each kind of progress prints."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from lpo_ray.config.schema import ProgressKind
from lpo_ray.telemetry.log import LogLine
from lpo_ray.telemetry.monitor.progress import Progress, step_line
from lpo_ray.telemetry.stage_clock import StageClock
from tests.support.builders import make_target
from tests.support.telemetry import Ticking, metrics_of

NOON = time.mktime((2026, 7, 1, 12, 0, 5, 0, 0, -1))


class Terminal(io.StringIO):
    """Where a live panel may be drawn."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", list(ProgressKind))
def test_progress_shows_the_step_and_what_each_stage_is_doing(kind: ProgressKind) -> None:
    output = Terminal() if kind is ProgressKind.live else io.StringIO()
    clock = StageClock(Ticking())
    progress = Progress(kind, Console(file=output, width=120), clock, "demo", steps=9)
    with clock.stage("sample"), clock.stage("sample"), clock.stage("project"):
        metrics = metrics_of(4, [make_target(n, (3, 5)) for n in range(4)])
        progress.step(metrics, LogLine(NOON, "info", "driver", "", 4, step_line(metrics, 9)))
        progress.say(LogLine(NOON, "warning", "driver", "", 4, "something happened\nbadly"))
        progress.say(LogLine(NOON, "error", "rollout", "rollout worker 1", None, "no memory"))
        progress.doing("7/8 prompts")
        progress.close()
    shown = output.getvalue()
    if kind is ProgressKind.quiet:
        assert shown == ""
        return
    assert "step 4/9" in shown
    assert "12:00:05 error rollout rollout-worker-1 - no memory\n" in shown
    if kind is ProgressKind.live:  # whoever sits there knows the time and the step
        assert "something happened\n" in shown
        assert "12:00:05 warning" not in shown
    else:
        assert shown.startswith("12:00:05 info driver - 4 step 4/9  reward ")
        assert "12:00:05 warning driver - 4 something happened\n12:00:05 warning driver - 4 badly\n" in shown
    for name in ("reward", "pass", "entropy", "grad", "tok/s"):
        assert name in shown
    if kind is ProgressKind.live:
        assert "projecting, sampling 2 groups  7/8 prompts" in shown
