"""The live panel as text: no row is wider than the terminal, none wraps, whatever a run is called or measures."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from lpo_ray.telemetry.metrics import Value
from lpo_ray.telemetry.monitor.panel import ASCII_BLOCKS, BLOCKS, Curve, Panel
from lpo_ray.telemetry.stage_clock import StageClock
from tests.support.telemetry import Ticking

WIDTHS = (1, 20, 40, 80, 160, 400)
ROWS = 8
"""head, bar, five curves, what is at work"""
HOSTILE = (
    "[bold]loud[/bold]", "[/]", "[link=http://x]y[/link]", ":boom:", "a\nb\r\tc", "\x1b[31mred\x1b[0m", "\x07\x00",
    "名前" * 100, "x" * 1000, "e\u0301\u200b\u202e", "\ud800", "",
)  # fmt: skip


def step(number: int, value: float = 0.5) -> dict[str, Value]:
    shares = {
        f"{lane}_{stage}": value
        for lane, stages in (("engines", ("sample", "publish")), ("learner", ("project", "anchor")))
        for stage in (*stages, "wait")
    }
    return {
        "step": number, "reward": value, "pass_rate": value, "token_entropy": value, "gradient_norm": value,
        "tokens_per_second": value, "queue_waiting": 3, "queue_on_the_way": 5, **shares,
    }  # fmt: skip


def rendered(panel: Panel, width: int, encoding: str = "utf-8") -> list[str]:
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", newline="\n")
    Console(file=output, width=width, height=40, force_terminal=True, color_system=None).print(panel)
    output.seek(0)
    return output.read().splitlines()


def panel_of(history: Sequence[Mapping[str, Value]], run: str = "demo", clock: StageClock | None = None) -> Panel:
    panel = Panel(run, 64, clock or StageClock(Ticking()))
    panel.resumed(history)
    return panel


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("steps", [0, 1, 2, 63, 20_000])
def test_no_row_is_wider_than_the_terminal_and_none_wraps(steps: int, width: int) -> None:
    lines = rendered(panel_of([step(number, number / 7) for number in range(1, steps + 1)]), width)
    assert len(lines) == (ROWS if steps else 3)
    assert max(cell_len(line) for line in lines) <= width


@pytest.mark.parametrize("width", [80, 160])
def test_a_reader_sees_where_the_run_is_its_curves_and_both_lanes(width: int) -> None:
    clock = StageClock(Ticking())
    history = [step(number, 0.1 * number) for number in range(1, 9)]
    history[-1] |= {
        "reward": 0.8, "pass_rate": 0.25, "engines_sample": 0.6, "engines_publish": 0.004, "engines_wait": 0.396,
        "learner_project": 0.55, "learner_anchor": 0.05, "learner_wait": 0.4,
    }  # fmt: skip
    panel = panel_of(history, "quickstart", clock)
    panel.note = "7/8 prompts"
    with clock.stage("sample"), clock.stage("sample"), clock.stage("project"):
        lines = [" ".join(line.split()) for line in rendered(panel, width)]
    assert lines[0] == "quickstart step 8/64 entropy 0.800 grad 0.80 1 tok/s 0:00:00"
    assert lines[2] == "reward 0.800 ▁▂▃▄▅▆▇█ 0.100 to 0.800"
    assert lines[3].startswith("pass 0.250 ▁▂▃▅▆▇█▂ 0.100 to 0.700")
    assert lines[4].startswith("engines 60 % ")
    assert lines[4].endswith("sample 60 % wait 40 %")
    assert lines[5].startswith("learner 60 % ")
    assert lines[5].endswith("project 55 % wait 40 % anchor 5 %")
    assert lines[6] == "groups 3 ████████ wait to be trained, 5 on the way"
    assert lines[7] == "projecting, sampling 2 groups 7/8 prompts"


def test_a_start_shows_which_component_is_starting_and_for_how_long() -> None:
    ticking = Ticking()
    clock = StageClock(ticking)
    panel = panel_of([], clock=clock)
    with clock.stage("start"), clock.starting("learner", 1800.0):
        ticking.now = 5.0
        with clock.starting("rollout worker 0", 600.0):
            ticking.now = 17.0
            assert rendered(panel, 80)[-1].rstrip() == ("starting the components: learner 17 s, rollout worker 0 12 s")


@pytest.mark.parametrize("width", [20, 80, 160])
@pytest.mark.parametrize("name", HOSTILE)
def test_the_name_of_a_run_is_text_and_nothing_else(name: str, width: int) -> None:
    panel = panel_of([step(1)], name)
    panel.note = name
    lines = rendered(panel, width)
    assert len(lines) == ROWS
    assert max(cell_len(line) for line in lines) <= width
    assert not any("\x1b" in line or "\x07" in line for line in (lines[0], lines[-1]))
    if name == "[bold]loud[/bold]" and width > 40:
        assert lines[0].startswith(name)


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e300, 0.0])
def test_nan_inf_and_huge_numbers_fit_too(value: float, width: int) -> None:
    lines = rendered(panel_of([step(1), step(2, value), step(3)]), width)
    assert len(lines) == ROWS
    assert max(cell_len(line) for line in lines) <= width


def test_rows_of_an_older_run_may_lack_metrics() -> None:
    lines = rendered(panel_of([{"step": 1}, {"step": 2, "reward": None}]), 80)  # type: ignore[dict-item]
    assert len(lines) == ROWS
    assert lines[2].startswith("reward      nan")


def test_a_terminal_without_blocks_gets_letters() -> None:
    lines = rendered(panel_of([step(number, 0.1 * number) for number in range(1, 9)]), 80, "ascii")
    assert ASCII_BLOCKS in lines[2]
    assert all(line.isascii() for line in lines)


def test_a_curve_has_one_block_a_step_while_there_is_room_and_means_of_neighbours_after() -> None:
    curve = Curve()
    assert curve.draw(10) == ""
    curve.add(0.5)
    assert curve.draw(10) == "▅"
    assert curve.draw(0) == ""
    for value in (1.0, math.nan, math.inf, 0.0):
        curve.add(value)
    assert curve.draw(10) == "▅█  ▁"
    assert curve.bounds() == (0.0, 1.0)
    steps = Curve()
    for value in (0.0, 0.0, 1.0, 3.0, 4.0, 4.0):
        steps.add(value)
    assert steps.draw(3) == "▁▅█"  # means 0, 2 and 4
    empty = Curve(low=0.0)
    empty.add(0.0)
    assert empty.draw(3) == "▁"


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40),
    st.integers(0, 30),
    st.sampled_from([(None, None), (0.0, 1.0), (0.0, None)]),
)
def test_a_curve_of_any_numbers_is_as_wide_as_it_may_be(
    values: list[float], width: int, scale: tuple[float | None, float | None]
) -> None:
    curve = Curve(*scale)
    for value in values:
        curve.add(value)
    drawn = curve.draw(width)
    assert len(drawn) == (min(len(values), width) if any(map(math.isfinite, values)) else 0)
    assert set(drawn) <= {*BLOCKS, " "}
