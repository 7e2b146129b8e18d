"""Which algorithm a configuration is: published points by name, all others without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpo_ray.config import load_config
from lpo_ray.config.algorithms import POLICY_GRADIENTS, PROJECTIONS, algorithm_name
from lpo_ray.objective import DIVERGENCES, TEMPERATURES
from lpo_ray.run.numbers import numbers
from lpo_ray.run.spec import outline

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
FIRST_ORDER = ("objective.divergence=first_order", "objective.token_clip.kind=ppo_ratio")


def row(*overrides: str) -> object:
    return numbers(outline(load_config(QUICKSTART, overrides), 2048))["algorithm"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), "LPO, forward KL; tau group_std (GRPO's)"),
        (("objective.divergence=reverse_kl", "objective.target_temperature=0.5"), "LPO, reverse KL; tau 0.5"),
        (
            ("objective.token_clip.kind=none", "objective.temperature_scale=2"),
            "LPO, forward KL; tau group_std times 2, with token clip none",
        ),
        (("objective.length_norm=sum",), "LPO, forward KL; tau group_std (GRPO's), with summed log-ratios"),
        (("objective.length_norm=sum", "objective.token_clip.kind=none"), "TPO"),
        (FIRST_ORDER, "GRPO"),
        ((*FIRST_ORDER, "objective.token_clip.high=0.28"), "GRPO with DAPO's higher clip"),
        ((*FIRST_ORDER, "objective.length_norm=sum"), "GRPO, with summed log-ratios"),
        ((*FIRST_ORDER, "objective.length_norm=sum", "objective.target_temperature=one"), "Dr.GRPO"),
        ((*FIRST_ORDER, "objective.target_temperature=one"), "Dr.GRPO, with mean log-ratios"),
        ((*FIRST_ORDER, "objective.target_temperature=group_mean"), "MaxRL"),
        ((*FIRST_ORDER, "objective.target_temperature=batch_std"), "REINFORCE++ with baseline"),
        (("objective.divergence=first_order",), "GRPO, with token clip clamp instead of ppo_ratio"),
        (
            (*FIRST_ORDER, "objective.target_temperature=effective_50"),
            "first-order projection onto the target of tau effective_50, no published name",
        ),
        (
            (*FIRST_ORDER, "objective.temperature_scale=2"),
            "first-order projection onto the target of tau group_std times 2, no published name",
        ),
        (
            ("objective.divergence=tests.objective.test_plugins:chi_square",),
            "projection tests.objective.test_plugins:chi_square onto the target of tau group_std (GRPO's), "
            "no published name",
        ),
        (
            (*FIRST_ORDER, "objective.schedule=[{from_step: 8, divergence: forward_kl}]"),
            "GRPO; from step 8: LPO, forward KL; tau group_std (GRPO's), with token clip ppo_ratio",
        ),
    ],
)
def test_the_algorithm_has_its_name(overrides: tuple[str, ...], expected: str) -> None:
    assert row(*overrides) == expected


def test_every_row_of_the_tables_is_named() -> None:
    assert {*PROJECTIONS, "first_order"} == set(DIVERGENCES)
    assert set(POLICY_GRADIENTS) <= set(TEMPERATURES)
    for divergence in DIVERGENCES:
        assert algorithm_name(divergence, "group_std")
