from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.errors import ConfigError
from lpo_ray.tools.compare.grid import BASELINE, CONTROL, Arm, arms_of, axes_of
from lpo_ray.tools.compare.study import runs_of

CONFIG = Path(__file__).parents[3] / "configs" / "compare_countdown.yaml"


def test_several_axes_as_the_command_line_hands_them_over() -> None:
    axes, fixed = axes_of(
        ["objective.divergence=forward_kl,reverse_kl objective.target_temperature=one, 0.5", "learner.lr=1e-4"]
    )
    assert axes == {
        "objective.divergence": ("forward_kl", "reverse_kl"),
        "objective.target_temperature": ("one", "0.5"),
    }
    assert fixed == ("learner.lr=1e-4",)


@pytest.mark.parametrize(
    "text",
    ["evaluation.ks=[1,4]", "learner.deepspeed={a: 1, b: 2}", "task.verifier='math, or so'", "task.path=", "a.b=x=y"],
)
def test_one_value_is_an_override_whatever_stands_in_it(text: str) -> None:
    assert axes_of([text]) == ({}, (text,))


def test_lists_can_be_values_of_an_axis() -> None:
    assert axes_of(["task.counts=[3],[3,4]"])[0] == {"task.counts": ("[3]", "[3,4]")}
    changes = "[{from_step: 1, temperature_scale: 0.5}, {from_step: 2, temperature_scale: 0.1}]"
    assert axes_of([f"objective.schedule={changes}"]) == ({}, (f"objective.schedule={changes}",))
    assert axes_of([f"objective.schedule=[],{changes}"])[0] == {"objective.schedule": ("[]", changes)}
    assert axes_of(["a.b='1,]',\"2,'\""])[0] == {"a.b": ("'1,]'", '"2,\'"')}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["forward_kl,reverse_kl"], "'forward_kl,reverse_kl' is no axis; expected section.key=value,value"),
        (["a.b=1,,2"], "is no axis"),
        (["a.b=1,1"], "repeats an axis or a value"),
        (["a.b=1,2", "a.b=3,4"], "repeats an axis or a value"),
        (["run.seed=1,2"], "compare sets run.seed of each run; expected --seeds"),
    ],
)
def test_what_is_no_axis_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        axes_of(texts)


@given(
    st.lists(st.sampled_from(["forward_kl", "reverse_kl", BASELINE, CONTROL, "jensen_shannon"]), unique=True),
    st.lists(st.sampled_from(["one", "group_std", "0.5"]), unique=True, min_size=1),
)
def test_every_setting_has_what_was_asked_for_the_baseline_and_the_control(asked: list[str], taus: list[str]) -> None:
    axes = {"objective.target_temperature": tuple(taus)} | ({"objective.divergence": tuple(asked)} if asked else {})
    arms = arms_of(axes, "forward_kl")
    for tau in taus:
        of_setting = [arm.divergence for arm in arms if arm.setting == (("objective.target_temperature", tau),)]
        assert sorted(of_setting) == sorted({*(asked or ["forward_kl"]), BASELINE, CONTROL})
    assert len({arm.name for arm in arms}) == len(arms)


def test_names_are_for_folders_and_never_the_same() -> None:
    assert Arm("my.module:chi", (("task.path", "a/b c.jsonl"),)).name == "my.module_chi-a_b_c.jsonl"
    with pytest.raises(ConfigError, match="have the same name"):
        arms_of({"task.path": ("a/b", "a:b")}, "forward_kl")


def test_a_divergence_that_changes_is_an_arm_beside_the_baseline_that_does_not(tmp_path: Path) -> None:
    axes, fixed = axes_of(["objective.divergence=forward_kl,forward_kl/jensen_shannon@1/reverse_kl@20", "run.steps=30"])
    arms = arms_of(axes, "forward_kl")
    runs = {run.arm.divergence: run.config.objective for run in runs_of(CONFIG, fixed, arms, 1, tmp_path)}
    changing = runs["forward_kl/jensen_shannon@1/reverse_kl@20"]
    assert changing.divergence == "forward_kl"
    assert [(change.from_step, change.divergence) for change in changing.schedule] == [
        (1, "jensen_shannon"), (20, "reverse_kl"),
    ]  # fmt: skip
    assert all(not runs[name].schedule for name in ("forward_kl", BASELINE, CONTROL))


def test_two_schedules_at_once_are_refused(tmp_path: Path) -> None:
    texts = ["objective.divergence=forward_kl,forward_kl/reverse_kl@20"]
    axes, _ = axes_of([*texts, "objective.schedule=[],[{from_step: 5, temperature_scale: 0.5}]"])
    with pytest.raises(ConfigError, match="expected one of them"):
        arms_of(axes, "forward_kl")
    axes, fixed = axes_of([*texts, "objective.schedule=[{from_step: 5, temperature_scale: 0.5}]"])
    with pytest.raises(ConfigError, match="expected one of them"):
        runs_of(CONFIG, fixed, arms_of(axes, "forward_kl"), 1, tmp_path)


@pytest.mark.parametrize("name", ["my/file.py:chi", "my.module:chi", "forward_kl/reverse_kl"])
def test_a_path_is_no_schedule(name: str) -> None:
    assert not Arm(name, ()).is_schedule
