"""Functions from outside by name, and what every wrong name, shape or number is told."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given

from lpo_ray.common.plugins import UnknownName, resolve
from lpo_ray.objective import (
    Projection,
    clipped_token_loss,
    diagnose,
    gibbs_target,
    listwise,
    project,
    response_log_ratio,
    target_temperature,
)
from tests.support.strategies import Group, groups

# Functions as a user would write them, none of which looks at the mask.


def chi_square(log_policy: torch.Tensor, log_target: torch.Tensor, kept: torch.Tensor) -> Projection:
    policy, ratio = log_policy.exp(), (log_policy - log_target).exp()
    mean = (policy * ratio).sum(-1)
    return Projection(mean - 1, 2 * policy * (ratio - mean[:, None]))


def squared_log(log_policy: torch.Tensor, log_target: torch.Tensor, kept: torch.Tensor) -> Projection:
    policy, difference = log_policy.exp(), log_policy - log_target
    loss = (policy * difference**2).sum(-1)
    return Projection(
        loss,
        policy * (difference**2 + 2 * difference - (policy * (difference**2 + 2 * difference)).sum(-1, keepdim=True)),
    )


def shifted(log_policy: torch.Tensor, log_target: torch.Tensor, kept: torch.Tensor) -> Projection:
    return Projection((log_policy.exp() - log_target.exp()).sum(-1), log_policy.exp() + 1.0)


def coefficient_without_k(log_policy: torch.Tensor, log_target: torch.Tensor, kept: torch.Tensor) -> Projection:
    return Projection(log_policy.sum(-1), log_policy.sum(-1))


def reward_range(rewards: torch.Tensor, kept: torch.Tensor, ddof: int) -> torch.Tensor:
    return rewards.amax(-1) - rewards.amin(-1)


def halved(delta: torch.Tensor, coefficient: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return 0.5 * coefficient * delta


def summed(delta: torch.Tensor, coefficient: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return (coefficient * delta).sum(-1)


HERE = "tests.objective.test_plugins:"


@pytest.mark.parametrize("name", ["chi_square", "squared_log"])
@given(group=groups(max_k=5))
def test_a_divergence_from_outside_needs_no_mask_of_its_own(name: str, group: Group) -> None:
    """A lost response is masked with log w* = -inf: 0 * inf in a plain function would make the whole group NaN."""
    log_target = gibbs_target(group["rewards"], group["tau"], group["anchor"])
    small = project(HERE + name, group["log_ratio"], log_target)
    mask = torch.nn.functional.pad(torch.ones_like(log_target), (0, 2)).bool()
    log_ratio = torch.nn.functional.pad(group["log_ratio"], (0, 2)).requires_grad_()
    large = project(HERE + name, log_ratio, torch.nn.functional.pad(log_target, (0, 2), value=-math.inf), mask=mask)
    torch.testing.assert_close(large.loss, small.loss, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(large.coefficient[mask], small.coefficient[0], rtol=1e-9, atol=1e-12)
    large.loss.sum().backward()
    torch.testing.assert_close(log_ratio.grad, large.coefficient, rtol=1e-7, atol=1e-9)


def test_a_masked_response_is_never_pushed_whatever_a_function_returns() -> None:
    mask = torch.tensor([[True, True, False]])
    coefficient = project(HERE + "shifted", torch.zeros(1, 3), torch.zeros(1, 3), mask=mask).coefficient
    assert coefficient.tolist() == [[1.5, 1.5, 0.0]]


def test_temperatures_and_clips_from_outside_are_used_by_name() -> None:
    tau = target_temperature(torch.tensor([[1.0, 0.25], [3.0, 0.0]]), HERE + "reward_range", floor=0.5)
    assert tau.tolist() == [1.25, 3.5]
    loss = clipped_token_loss(HERE + "halved", torch.tensor([[3.0, -1.0]]), torch.tensor([2.0]))
    assert loss.tolist() == [[3.0, -1.0]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reverse", "kind is 'reverse'; expected one of a, b, or 'package.module:function'"),
        ("math:no_such", "'math:no_such', which cannot be imported .*'package.module:function'.* one of a, b"),
        ("no_such_module:fn", "'no_such_module:fn', which cannot be imported"),
        (".relative:fn", "'.relative:fn', which cannot be imported"),
        (":fn", "':fn', which cannot be imported"),
        ("math:pi", "'math:pi', which is a float; expected 'package.module:function', or one of a, b"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        resolve(name, {"b": math.sin, "a": math.cos}, "kind")


def test_a_table_comes_before_the_path() -> None:
    assert resolve("math:sin", {"math:sin": math.cos}, "kind") is math.cos
    assert resolve("math:sin", {"a": math.cos}, "kind") is math.sin


def test_errors_name_the_value_and_what_was_expected() -> None:
    one, two = torch.ones(1), torch.zeros(1, 2)
    ordinary: list[tuple[str, Callable[[], object]]] = [
        (r"\(1, 2\) and log_target \(1, 3\)", lambda: project("forward_kl", two, torch.zeros(1, 3))),
        (r"loss \(1,\) and coefficient \(1,\)", lambda: project(HERE + "coefficient_without_k", two, two)),
        ("a number above 0", lambda: target_temperature(two, -1.0)),
        ("a number above 0", lambda: target_temperature(two, math.nan)),
        (r"rewards have shape \(2,\)", lambda: target_temperature(two[0], "one")),
        ("rewards are torch.int64", lambda: target_temperature(two.long(), 0.25)),
        ("mask is all false", lambda: listwise(torch.zeros(2, 2), mask=torch.tensor([[True, True], [False, False]]))),
        (r"mask has shape \(1, 3\), values have \(1, 2\)", lambda: listwise(two, mask=torch.ones(1, 3))),
        (r"log_ratio has shape \(2,\)", lambda: listwise(two[0])),
        ("length_norm is 'median'", lambda: response_log_ratio(two, two.bool(), "median")),
        (r"\(1, 2\) and mask \(1, 3\)", lambda: response_log_ratio(two, torch.zeros(1, 3).bool())),
        (r"rewards \(1, 2\) and tau \(2,\)", lambda: gibbs_target(two, torch.ones(2))),
        (r"anchor has shape \(1, 3\), rewards \(1, 2\)", lambda: gibbs_target(two, one, torch.zeros(1, 3))),
        (r"tau is \[0.0\]", lambda: gibbs_target(two, torch.zeros(1))),
        (r"tau is \[-1.0\]", lambda: gibbs_target(two, -one)),
        (r"tau is \[nan\]", lambda: gibbs_target(two, one * math.nan)),
        (r"\(1, 2\) and coefficient \(2,\)", lambda: clipped_token_loss("clamp", two, torch.ones(2))),
        (r"returned \(1,\) for token_log_ratio \(1, 2\)", lambda: clipped_token_loss(HERE + "summed", two, one)),
        (r"the band is 1 - 1.0 to", lambda: clipped_token_loss("clamp", two, one, low=1.0)),
        (r"to 1 \+ -0.1", lambda: clipped_token_loss("clamp", two, one, high=-0.1)),
        (r"shapes \[\(2,\)\]", lambda: diagnose(two[0], torch.ones(2), two[0], two[0], two[0])),
    ]
    for message, call in ordinary:
        with pytest.raises(ValueError, match=message):
            call()
    for call in (
        lambda: project("kl", two, two),
        lambda: target_temperature(two, "kl"),
        lambda: clipped_token_loss("kl", two, one),
    ):
        with pytest.raises(UnknownName, match="is 'kl'; expected one of"):
            call()
