from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lpo_ray.errors import RunFailed
from lpo_ray.tools.compare.findings import Measure, Results, find
from lpo_ray.tools.compare.grid import Arm
from lpo_ray.tools.compare.outcome import CURVES, ArmResult, is_finished
from lpo_ray.tools.compare.report import Background, write_comparison

SAMPLES, PROMPTS = 4, 40
SETTINGS = ((("objective.target_temperature", "one"),), (("objective.target_temperature", "0.5"),))
AT_END, OVER_CURVE = Measure(1, over_curve=False), Measure(1, over_curve=True)


def outcome(seed: int, gain: int, *, lost: tuple[str, ...] = (), at_start: int = 0) -> ArmResult:
    """``gain``: passing responses more of every prompt at the last step."""
    rng = np.random.default_rng(seed)
    base = {f"p{n}": int(count) for n, count in enumerate(rng.integers(0, SAMPLES - 1, PROMPTS))}
    last = {name: count + gain for name, count in base.items() if name not in lost}
    curves = {name: np.full(20, 0.5) for name in CURVES}
    start = {name: count + at_start for name, count in base.items()}
    return ArmResult({0: start, 2: base, 4: last}, SAMPLES, curves, 8, 100, 1.0)


def results(**gains: int) -> Results:
    return {
        Arm(name, setting): {seed: outcome(seed, gain) for seed in (0, 1)}
        for setting in SETTINGS
        for name, gain in gains.items()
    }


def test_a_gain_is_found_with_its_size_and_nothing_else_is() -> None:
    found = find(results(forward_kl=1, reverse_kl=0, first_order_beta=0, first_order=0), [1, 4])
    by = {arm.arm.divergence: arm.difference for arm in found.arms if arm.arm.setting == SETTINGS[0]}
    assert by["first_order"] is None
    assert by["forward_kl"].by[AT_END].mean == pytest.approx(1 / SAMPLES)
    assert by["forward_kl"].by[AT_END].low > 0
    assert by["forward_kl"].by[OVER_CURVE].mean == pytest.approx(1 / SAMPLES / 2)  # one evaluation of two
    assert by["reverse_kl"].by[AT_END].mean == by["reverse_kl"].by[AT_END].high == 0
    wins = {one.divergence: (one.wins[AT_END], one.clear[AT_END], one.settings) for one in found.wins}
    assert wins == {"forward_kl": (2, 2, 2), "reverse_kl": (0, 0, 2), "first_order_beta": (0, 0, 2)}


def test_weighting_and_projection_add_up_to_the_whole() -> None:
    found = find(results(forward_kl=1, first_order_beta=-1, first_order=0), [1])
    parts = {part.meaning: part.by[AT_END].mean for part in found.parts if part.arm.setting == SETTINGS[1]}
    projection = parts["projection: forward_kl - first_order_beta"]
    weighting = parts["weighting: first_order_beta - first_order"]
    whole = next(arm.difference.by[AT_END].mean for arm in found.arms if arm.arm == Arm("forward_kl", SETTINGS[1]))
    assert (projection, weighting, whole) == pytest.approx((0.5, -0.25, 0.25))


def test_every_arm_is_measured_against_the_first_one_whatever_its_setting() -> None:
    one, half = SETTINGS
    runs = {
        Arm("forward_kl", one): {0: outcome(0, 1), 1: outcome(1, 1)},
        Arm("first_order", one): {0: outcome(0, 0), 1: outcome(1, 0)},
        Arm("forward_kl", half): {1: outcome(1, 2), 2: outcome(2, 2)},
    }
    found = {one.pair: (one.num_seeds, one.by[AT_END].mean) for one in find(runs, [1]).to_first}
    assert found == {"first_order - forward_kl": (2, -0.25), "forward_kl - forward_kl at one": (1, 0.25)}


def test_what_has_the_first_arm_as_its_baseline_is_not_said_twice() -> None:
    found = find(results(first_order=0, forward_kl=1, first_order_beta=0), [1])
    assert [difference.arm.setting for difference in found.to_first] == [SETTINGS[1]] * 3
    assert not find(
        {Arm("first_order", ()): {0: outcome(0, 0)}, Arm("forward_kl", ()): {0: outcome(0, 1)}}, [1]
    ).to_first


def test_seeds_and_prompts_that_one_of_two_lacks_are_not_paired() -> None:
    arm, baseline = Arm("forward_kl", ()), Arm("first_order", ())
    lost = ("p3", "p5")
    runs = {arm: {0: outcome(0, 1, lost=lost), 1: outcome(1, 1)}, baseline: {1: outcome(1, 0), 2: outcome(2, 0)}}
    found = find(runs, [1])
    assert [one.num_seeds for one in found.arms] == [2, 2]
    assert found.arms[0].difference.num_seeds == 1
    assert found.arms[0].difference.by[AT_END].mean == pytest.approx(0.25)
    paired = find({arm: {0: outcome(0, 1, lost=lost)}, baseline: {0: outcome(0, 0)}}, [1])
    assert paired.arms[0].difference.by[AT_END].mean == pytest.approx(0.25)


def test_runs_that_began_differently_are_told() -> None:
    runs = {
        Arm("forward_kl", ()): {0: outcome(0, 0), 1: outcome(1, 0, at_start=1)},
        Arm("first_order", ()): {0: outcome(0, 0), 1: outcome(1, 0)},
    }
    assert find(runs, [1]).checks[1].endswith("the same in all arms for 1 of 2 seeds")


def test_the_page_needs_nothing_from_elsewhere_and_shows_what_failed(tmp_path: Path) -> None:
    background = Background(
        "<b>mine", {"seeds": "the same: 0, 1"}, [RunFailed("lost-seed1", 9, "a", ["<Killed>"])], "run: {}"
    )
    write_comparison(tmp_path, results(forward_kl=1, first_order_beta=0, first_order=0), [1, 4], background)
    page = (tmp_path / "comparison.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert "&lt;b&gt;mine" in page and "lost-seed1: exit code 9" in page and "&lt;Killed&gt;" in page
    assert "<b>+0.250 [+0.250, +0.250]</b>" in page
    text = (tmp_path / "comparison.md").read_text()
    assert "| one | projection: forward_kl - first_order_beta | 2 | **+0.250" in text
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert stored["wins"][0]["wins"]["pass@1 at the end"] == 2
    for picture in ("curves", "trades"):
        assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        svg = (tmp_path / f"{picture}.svg").read_text()
        assert svg.startswith("<svg") and svg in page and f"![{picture}]({picture}.svg)" in text
    assert "What an arm gives for what it takes" in page


def test_one_measure_or_one_arm_has_no_trades(tmp_path: Path) -> None:
    background = Background("mine", {}, [], "")
    alone = {Arm("forward_kl", ()): {0: outcome(0, 1)}}
    write_comparison(tmp_path, alone, [1, 4], background)
    write_comparison(tmp_path, results(forward_kl=1, first_order=0), [1], background)
    assert not (tmp_path / "trades.svg").exists()
    assert "for what it takes" not in (tmp_path / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("steps", "after", "finished"), [(4, {"pass@1": 0.1}, True), (3, {"pass@1": 0.1}, False), (4, None, False)]
)
def test_a_run_is_finished_with_its_last_evaluation(steps: int, after: object, finished: bool, tmp_path: Path) -> None:
    assert not is_finished(tmp_path, 4)
    (tmp_path / "summary.json").write_text(json.dumps({"steps": steps, "evaluation": {"after": after}}))
    assert is_finished(tmp_path, 4) is finished
