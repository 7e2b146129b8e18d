"""Properties that every row of a table must have; a new divergence, temperature or clip is tested by being added."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.objective import (
    DIVERGENCES,
    TEMPERATURES,
    TOKEN_CLIPS,
    clipped_token_loss,
    gibbs_target,
    listwise,
    project,
    response_log_ratio,
    target_temperature,
)
from tests.support.strategies import FINITE, Group, groups

ZERO_SUM = sorted(set(DIVERGENCES) - {"pointwise"})


def target_of(group: Group) -> torch.Tensor:
    return gibbs_target(group["rewards"], group["tau"], group["anchor"])


@pytest.mark.parametrize("divergence", ZERO_SUM)
@settings(max_examples=40)
@given(group=groups())
def test_the_coefficient_is_the_gradient(divergence: str, group: Group) -> None:
    """By autograd and by central differences; `pointwise` is exempt, its docstring says why."""
    log_target = target_of(group)
    log_ratio = group["log_ratio"].clone().requires_grad_()
    projection = project(divergence, log_ratio, log_target)
    projection.loss.sum().backward()
    torch.testing.assert_close(log_ratio.grad, projection.coefficient, rtol=1e-7, atol=1e-9)
    step = 1e-5
    for k in range(log_ratio.shape[1]):
        nudge = torch.zeros_like(group["log_ratio"])
        nudge[0, k] = step
        above = project(divergence, group["log_ratio"] + nudge, log_target).loss
        below = project(divergence, group["log_ratio"] - nudge, log_target).loss
        assert float((above - below) / (2 * step)) == pytest.approx(float(projection.coefficient[0, k]), abs=1e-6)


@pytest.mark.parametrize("divergence", ZERO_SUM)
@given(group=groups())
def test_coefficients_sum_to_zero(divergence: str, group: Group) -> None:
    assert abs(float(project(divergence, group["log_ratio"], target_of(group)).coefficient.sum())) < 1e-9


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(group=groups(), shift=st.floats(-50, 50, **FINITE))
def test_a_common_shift_changes_nothing(divergence: str, group: Group, shift: float) -> None:
    log_target = target_of(group)
    here = project(divergence, group["log_ratio"], log_target)
    there = project(divergence, group["log_ratio"] + shift, log_target)
    torch.testing.assert_close(here.coefficient, there.coefficient, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(here.loss, there.loss, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(group=groups(), random=st.randoms(use_true_random=False))
def test_responses_have_no_order(divergence: str, group: Group, random: object) -> None:
    order = list(range(group["rewards"].shape[1]))
    random.shuffle(order)
    log_target = target_of(group)
    here = project(divergence, group["log_ratio"], log_target).coefficient[:, order]
    there = project(divergence, group["log_ratio"][:, order], log_target[:, order]).coefficient
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
@given(group=groups())
def test_at_the_target_there_is_nothing_to_do(divergence: str, group: Group) -> None:
    log_target = target_of(group)
    projection = project(divergence, log_target + 3.0, log_target)
    assert float(projection.loss.abs()) < 1e-9
    assert float(projection.coefficient.abs().max()) < 1e-9


@given(groups(spread=300.0))
def test_forward_kl_is_bounded(group: Group) -> None:
    coefficient = project("forward_kl", group["log_ratio"], target_of(group)).coefficient
    assert float(coefficient.abs().max()) <= 1 + 1e-12
    assert float(coefficient.abs().sum()) <= 2 + 1e-12


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(group=groups(min_k=2, max_k=5), extra=st.integers(1, 4), junk=st.floats(-1e3, 1e3, **FINITE))
def test_a_masked_entry_does_not_exist(divergence: str, group: Group, extra: int, junk: float) -> None:
    mask = torch.nn.functional.pad(torch.ones_like(group["rewards"]), (0, extra)).bool()

    def padded(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, extra), value=junk)

    for rule in (*TEMPERATURES, 0.5):
        small = target_temperature(group["rewards"], rule)
        large = target_temperature(padded(group["rewards"]), rule, mask=mask)
        torch.testing.assert_close(small, large, rtol=1e-9, atol=1e-12)
    log_target = gibbs_target(padded(group["rewards"]), group["tau"], padded(group["anchor"]), mask=mask)
    log_ratio = padded(group["log_ratio"]).requires_grad_()
    large = project(divergence, log_ratio, log_target, mask=mask)
    small = project(divergence, group["log_ratio"], target_of(group))
    torch.testing.assert_close(large.coefficient[mask], small.coefficient[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(large.loss, small.loss, rtol=1e-9, atol=1e-12)
    assert not large.coefficient[~mask].any()
    large.loss.sum().backward()
    assert torch.isfinite(log_ratio.grad).all()
    assert not log_ratio.grad[~mask].any()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("tau", [1e-6, 1e-3, 1.0, math.inf])
def test_extremes_stay_finite_in_float32(divergence: str, size: int, tau: float) -> None:
    generator = torch.Generator().manual_seed(size)
    for scale in (0.0, 1.0, 300.0):
        anchor = scale * (2 * torch.rand(1, size, generator=generator) - 1)
        log_ratio = (scale * (2 * torch.rand(1, size, generator=generator) - 1)).requires_grad_()
        rewards = torch.rand(1, size, generator=generator).round()
        log_target = gibbs_target(rewards, torch.tensor([tau]), anchor)
        projection = project(divergence, log_ratio, log_target)
        projection.loss.sum().backward()
        for value in (projection.loss, projection.coefficient, log_ratio.grad, log_target):
            assert not value.isnan().any()
        assert torch.isfinite(projection.coefficient).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(group=groups())
def test_float32_agrees_with_float64(divergence: str, group: Group) -> None:
    exact = project(divergence, group["log_ratio"], target_of(group)).coefficient
    single = {name: value.float() for name, value in group.items()}
    rounded = project(divergence, single["log_ratio"], target_of(single)).coefficient
    torch.testing.assert_close(rounded.double(), exact, rtol=2e-4, atol=2e-5)


@given(groups(max_k=6), st.floats(0.01, 50, **FINITE))
def test_rewards_matter_only_in_units_of_tau(group: Group, scale: float) -> None:
    here = gibbs_target(group["rewards"], group["tau"], group["anchor"])
    there = gibbs_target(group["rewards"] * scale + 7.0, group["tau"] * scale, group["anchor"])
    torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-9)


def test_temperatures_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    expect = {"group_std": [0.5, math.sqrt(3) / 4], "group_mean": [0.5, 0.75], "one": [1.0, 1.0]}
    for rule, values in expect.items():
        found = target_temperature(rewards, rule, floor=0.0)
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64))
    centred = math.sqrt((4 * 0.25 + 3 * 0.0625 + 0.5625) / 8)
    assert target_temperature(rewards, "batch_std", floor=0.0).tolist() == pytest.approx([centred, centred])
    assert target_temperature(rewards, 0.25).tolist() == [0.25, 0.25]
    assert target_temperature(rewards, "group_std", ddof=1, floor=0.0)[0] == pytest.approx(math.sqrt(1 / 3))
    batch = target_temperature(rewards, "batch_std", ddof=1, floor=0.0)
    assert batch[0] == pytest.approx(centred * math.sqrt(8 / 7))
    assert target_temperature(torch.ones(2, 1), "group_std", ddof=1).tolist() == pytest.approx([1e-6, 1e-6])
    assert target_temperature(rewards, "group_std", floor=0.1)[0] == pytest.approx(0.6)


def test_a_mean_of_zero_leaves_the_policy_where_it_is() -> None:
    rewards = torch.tensor([[0.0, 0.0], [-1.0, 1.0]])
    tau = target_temperature(rewards, "group_mean")
    assert torch.isinf(tau).all()
    anchor = torch.tensor([[0.3, -0.1], [1.0, 2.0]])
    assert torch.equal(gibbs_target(rewards, tau, anchor), listwise(anchor))


def test_tau_to_zero_is_the_best_response_and_ties_share() -> None:
    weights = gibbs_target(torch.tensor([[1.0, 0.0, 1.0, 0.5]]), torch.tensor([1e-6])).exp()
    assert weights.tolist() == [[0.5, 0.0, 0.5, 0.0]]


@pytest.mark.parametrize("kind", TOKEN_CLIPS)
@given(delta=st.floats(-0.2, 0.15, **FINITE), coefficient=st.floats(-2, 2, **FINITE))
def test_inside_the_band_every_clip_passes_the_gradient(kind: str, delta: float, coefficient: float) -> None:
    token = torch.tensor([[delta]], dtype=torch.float64, requires_grad=True)
    clipped_token_loss(kind, token, torch.tensor([coefficient], dtype=torch.float64)).sum().backward()
    ratio = math.exp(delta) if kind == "ppo_ratio" else 1.0
    assert float(token.grad) == pytest.approx(coefficient * ratio, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "delta", "coefficient", "gradient"),
    [
        ("clamp", 0.5, -1.0, 0.0),
        ("clamp", 0.5, 1.0, 0.0),
        ("clamp", -0.5, -1.0, 0.0),
        ("one_sided", 0.5, -1.0, 0.0),
        ("one_sided", 0.5, 1.0, 1.0),
        ("one_sided", -0.5, 1.0, 0.0),
        ("one_sided", -0.5, -1.0, -1.0),
        ("ppo_ratio", 0.5, -1.0, 0.0),
        ("ppo_ratio", 0.5, 1.0, math.exp(0.5)),
        ("ppo_ratio", -0.5, 1.0, 0.0),
        ("ppo_ratio", -0.5, -1.0, -math.exp(-0.5)),
        ("none", 0.5, -1.0, -1.0),
        ("none", -0.5, 1.0, 1.0),
    ],
)
def test_outside_the_band(kind: str, delta: float, coefficient: float, gradient: float) -> None:
    token = torch.tensor([[delta]], dtype=torch.float64, requires_grad=True)
    clipped_token_loss(kind, token, torch.tensor([coefficient], dtype=torch.float64)).sum().backward()
    assert float(token.grad) == pytest.approx(gradient)


def test_clip_low_and_high_are_separate() -> None:
    delta = torch.tensor([[math.log(1.25), math.log(0.75)]], dtype=torch.float64, requires_grad=True)
    clipped_token_loss("clamp", delta, torch.ones(1, dtype=torch.float64), low=0.2, high=0.3).sum().backward()
    assert delta.grad.tolist() == [[1.0, 0.0]]
    for high, loss in ((0.2, -1.2), (0.28, -1.25)):
        found = clipped_token_loss("ppo_ratio", delta[:, :1], -torch.ones(1, dtype=torch.float64), low=0.2, high=high)
        assert float(found) == pytest.approx(loss)


@pytest.mark.parametrize("coefficient", [-1.0, 1.0])
@pytest.mark.parametrize("kind", TOKEN_CLIPS)
def test_a_ratio_that_overflows_float32_leaves_a_finite_gradient(kind: str, coefficient: float) -> None:
    """exp(100) is inf in float32; a branch that is not taken still takes part in the backward pass, as 0 * inf."""
    delta = torch.tensor([[100.0, -300.0, 0.0]], requires_grad=True)
    loss = clipped_token_loss(kind, delta, torch.tensor([coefficient]))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(delta.grad).all()
    assert float(delta.grad[0, 2]) == coefficient


def test_the_coefficient_of_a_clip_is_a_constant() -> None:
    coefficient = torch.ones(1, requires_grad=True)
    delta = torch.full((1, 2), 0.1, requires_grad=True)
    clipped_token_loss("clamp", delta, coefficient).sum().backward()
    assert coefficient.grad is None
    log_ratio = torch.zeros(1, 2, requires_grad=True)
    assert not any(project(name, log_ratio, log_ratio.detach() - 0.7).coefficient.requires_grad for name in DIVERGENCES)


def test_response_log_ratio_is_a_mean_or_a_sum_over_real_tokens() -> None:
    tokens = torch.tensor([[1.0, 2.0, math.nan], [4.0, math.inf, 0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert response_log_ratio(tokens, mask, "mean").tolist() == [1.5, 4.0]
    assert response_log_ratio(tokens, mask, "sum").tolist() == [3.0, 4.0]
    assert response_log_ratio(tokens, torch.zeros_like(mask), "mean").tolist() == [0.0, 0.0]


def test_the_listwise_policy_of_a_masked_group() -> None:
    """softmax(log 3, 0) = (3/4, 1/4), and log 0 for the entry that does not exist."""
    log_ratio = torch.tensor([[math.log(3.0), 0.0, 9.0]], dtype=torch.float64)
    found = listwise(log_ratio, mask=torch.tensor([[True, True, False]]))[0]
    assert found.tolist() == pytest.approx([math.log(0.75), math.log(0.25), -math.inf])


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_target_that_underflowed_or_was_stored_in_float32(divergence: str) -> None:
    """log w* = -inf stays finite, forwards and backwards; a target stored as float32 gives the same coefficients."""
    log_ratio = torch.tensor([[0.0, 0.3, -0.2]], requires_grad=True)
    projection = project(divergence, log_ratio, torch.tensor([[-math.inf, 0.0, -math.inf]]))
    projection.loss.sum().backward()
    assert all(torch.isfinite(value).all() for value in (*projection, log_ratio.grad))
    rewards, tau = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    exact = gibbs_target(rewards, tau)
    here = project(divergence, torch.zeros_like(exact), exact).coefficient
    stored = project(divergence, torch.zeros(1, 3), exact.float()).coefficient
    torch.testing.assert_close(stored.double(), here, rtol=1e-5, atol=1e-6)


def test_underflow_weighs_on_reverse_kl_and_not_on_forward_kl() -> None:
    log_target = torch.tensor([[0.0, -math.inf]])
    assert project("forward_kl", torch.zeros(1, 2), log_target).coefficient.tolist() == [[-0.5, 0.5]]
    reverse = project("reverse_kl", torch.zeros(1, 2), log_target).coefficient[0]
    assert reverse[1] == -reverse[0] == pytest.approx(1e15 / 4)
