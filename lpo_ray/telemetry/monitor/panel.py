"""Live panel of a run: where it is, small curves over its steps, what the lanes do, and what is at work now."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lpo_ray.telemetry.metrics import Value
from lpo_ray.telemetry.stage_clock import ENGINES, LEARNER, WAIT, StageClock

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=+*%#"
"""levels of a curve where the terminal's encoding has no blocks"""
LABEL, VALUE, DETAIL = 9, 8, 37
"""columns before a curve, and of what is said behind it where the terminal is narrow"""
SHORTEST_CURVE, LONGEST_CURVE = 16, 60
"""columns"""
LEAST_SHARE = 0.005
"""of a lane's time, below which a stage is not shown"""
VERBS = {
    "start": "starting the components",
    "sample": "sampling",
    "verify": "verifying",
    "anchor": "building targets",
    "project": "projecting",
    "publish": "publishing weights",
    "checkpoint": "saving a checkpoint",
    "evaluate": "evaluating",
}
"""stage -> what the run is doing in it"""
SHOWN = {
    "reward": "reward {:.3f}",
    "pass_rate": "pass {:.3f}",
    "token_entropy": "entropy {:.3f}",
    "gradient_norm": "grad {:.2f}",
    "tokens_per_second": "{:.0f} tok/s",
}
"""metrics of a step in one line, in order"""


class Curve:
    """Values over steps, drawn as one line of blocks. NaN and Inf leave a gap."""

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        """Draw between ``low`` and ``high``; the least and the largest value where they are None."""
        self._low, self._high = low, high
        self._values: list[float] = []
        self._drawn: tuple[int, int, str, str] = (0, 0, "", "")

    def add(self, value: float) -> None:
        """Append the value of the next step."""
        self._values.append(value if math.isfinite(value) else math.nan)

    def bounds(self) -> tuple[float, float] | None:
        """Return the least and the largest value; None when there is none."""
        finite = [value for value in self._values if not math.isnan(value)]
        return (min(finite), max(finite)) if finite else None

    def draw(self, width: int, blocks: str = BLOCKS) -> str:
        """Draw at most ``width`` characters; each stands for one step, or for the mean of several."""
        key = (len(self._values), width, blocks)
        if self._drawn[:3] != key:
            self._drawn = (*key, self._draw(width, blocks))
        return self._drawn[3]

    def _draw(self, width: int, blocks: str) -> str:
        bounds = self.bounds()
        if bounds is None or width <= 0:
            return ""
        low = bounds[0] if self._low is None else self._low
        high = bounds[1] if self._high is None else self._high
        if self._low is not None and not high > low:
            high = low + 1.0
        return "".join(_block(value, low, high, blocks) for value in _shrunk(self._values, width))


class Panel:
    """Renderable of a run; every row fits the terminal's width."""

    def __init__(self, run: str, steps: int, clock: StageClock) -> None:
        """Show the stages of ``clock``."""
        self._run, self._steps, self._clock = run, steps, clock
        self._since = clock.now()
        self._last: Mapping[str, Value] = {}
        self._reward, self._passes = Curve(), Curve()
        self._engines, self._learner = Curve(0.0, 1.0), Curve(0.0, 1.0)
        self._waiting = Curve(0.0)
        self.note = ""
        """how far the stage at work is"""

    def resumed(self, rows: Iterable[Mapping[str, Value]]) -> None:
        """Begin the curves with the steps that were done before."""
        for row in rows:
            self.step(row)

    def step(self, metrics: Mapping[str, Value]) -> None:
        """Add a step that is done."""
        self._last = metrics
        self._reward.add(number(metrics, "reward"))
        self._passes.add(number(metrics, "pass_rate"))
        self._engines.add(1.0 - number(metrics, f"engines_{WAIT}"))
        self._learner.add(1.0 - number(metrics, f"learner_{WAIT}"))
        self._waiting.add(number(metrics, "queue_waiting"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, blocks = options.max_width, ASCII_BLOCKS if options.ascii_only else BLOCKS
        grid = Table.grid()  # a bare ProgressBar does not end its line
        grid.add_row(_fitted(self._head()))
        grid.add_row(ProgressBar(total=max(self._steps, 1), completed=self._done(), width=min(LONGEST_CURVE, width)))
        if self._last:
            space = min(LONGEST_CURVE, max(SHORTEST_CURVE, width - LABEL - VALUE - DETAIL - 2))
            for label, value, curve, detail in self._rows():
                drawn = curve.draw(space, blocks)
                grid.add_row(_fitted(f"{label:<{LABEL}}{value:>{VALUE - 2}}  {drawn:<{space}}  {detail}"))
        grid.add_row(_fitted(f"{self._working()}  {self.note}", style="dim"))
        yield grid

    def _head(self) -> str:
        parts = [self._run, f"step {self._done()}/{self._steps}"]
        if self._last:
            parts += [
                form.format(number(self._last, name))
                for name, form in SHOWN.items()
                if name not in ("reward", "pass_rate")
            ]
        return "  ".join([*parts, str(timedelta(seconds=int(self._clock.now() - self._since)))])

    def _done(self) -> int:
        return int(str(self._last.get("step", 0)))

    def _rows(self) -> list[tuple[str, str, Curve, str]]:
        last = self._last
        waiting, on_the_way = number(last, "queue_waiting"), number(last, "queue_on_the_way")
        return [
            ("reward", f"{number(last, 'reward'):.3f}", self._reward, _range(self._reward)),
            ("pass", f"{number(last, 'pass_rate'):.3f}", self._passes, _range(self._passes)),
            ("engines", _busy(last, "engines"), self._engines, _shares(last, "engines", ENGINES)),
            ("learner", _busy(last, "learner"), self._learner, _shares(last, "learner", LEARNER)),
            ("groups", f"{waiting:.0f}", self._waiting, f"wait to be trained, {on_the_way:.0f} on the way"),
        ]

    def _working(self) -> str:
        now, starts = self._clock.now(), dict(self._clock.starts)
        working = [
            VERBS[name] + (f" {count} groups" if name in ("sample", "verify") else "")
            for name, count in self._clock.active().items()
        ]
        if starts:
            working.append(", ".join(f"{name} {now - start.since:.0f} s" for name, start in starts.items()))
        return ": ".join(working) if starts else ", ".join(working) or "waiting"


def number(metrics: Mapping[str, Value], name: str) -> float:
    """Return a metric as a number; NaN when it is missing, or none."""
    value = metrics.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _shrunk(values: Sequence[float], width: int) -> list[float]:
    """Return at most ``width`` values, each the mean of as many neighbours that are numbers."""
    if len(values) <= width:
        return list(values)
    edges = [index * len(values) // width for index in range(width + 1)]
    return [_mean([v for v in values[a:b] if not math.isnan(v)]) for a, b in itertools.pairwise(edges)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(value / len(values) for value in values) if values else math.nan


def _block(value: float, low: float, high: float, blocks: str) -> str:
    if math.isnan(value):
        return " "
    if not high > low:
        return blocks[len(blocks) // 2]
    place = min(max(value / (high - low) - low / (high - low), 0.0), 1.0)
    return blocks[min(int(place * len(blocks)), len(blocks) - 1)]


def _range(curve: Curve) -> str:
    bounds = curve.bounds()
    return "" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _busy(metrics: Mapping[str, Value], lane: str) -> str:
    return f"{100 - 100 * number(metrics, f'{lane}_{WAIT}'):.0f} %"


def _shares(metrics: Mapping[str, Value], lane: str, stages: Sequence[str]) -> str:
    """Say what the lane did in the last step, the largest share first."""
    found = [(number(metrics, f"{lane}_{stage}"), stage) for stage in (*stages, WAIT)]
    shown = sorted((item for item in found if item[0] >= LEAST_SHARE), reverse=True)
    return "  ".join(f"{stage} {100 * share:.0f} %" for share, stage in shown)


def _fitted(text: str, style: str = "") -> Text:
    """Make one row of the text, cut at the terminal's width. Markup and control characters have no meaning."""
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return Text(printable.rstrip(), style=style, no_wrap=True, overflow="ellipsis")
