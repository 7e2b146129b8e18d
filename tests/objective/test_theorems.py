"""The paper's theorems as properties (LPO paper, sections 3-4 and appendix C)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lpo_ray.objective import diagnose, effective_sample_size, gibbs_target, listwise, project, target_temperature
from lpo_ray.objective.temperature import LOG_TAU
from tests.support.strategies import FINITE, Group, groups


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def objective(log_w: torch.Tensor, group: Group) -> torch.Tensor:
    """J(w) = sum w R - tau KL(w || P_t) (Eq. 7)."""
    return (log_w.exp() * group["rewards"]).sum(-1) - group["tau"] * kl(log_w, listwise(group["anchor"]))


@given(groups(), groups())
def test_theorem_1_the_target_is_the_maximiser(group: Group, other: Group) -> None:
    best = gibbs_target(group["rewards"], group["tau"], group["anchor"])
    size = min(best.shape[1], other["rewards"].shape[1])
    rival = torch.log_softmax(torch.nn.functional.pad(other["rewards"][:, :size], (0, best.shape[1] - size)), -1)
    assert objective(best, group) >= objective(rival, group) - 1e-9


@given(groups())
def test_proposition_1_on_policy_reverse_kl_is_the_policy_gradient(group: Group) -> None:
    on_policy = torch.zeros_like(group["rewards"])
    log_target = gibbs_target(group["rewards"], group["tau"])
    exact = project("reverse_kl", on_policy, log_target).coefficient
    first = project("first_order", on_policy, log_target).coefficient
    torch.testing.assert_close(exact, first, rtol=1e-9, atol=1e-12)
    advantage = (group["rewards"] - group["rewards"].mean()) / group["tau"]
    torch.testing.assert_close(exact, -advantage / exact.shape[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["group_std", "group_mean", "one", "batch_std", 0.37])
@pytest.mark.parametrize("ddof", [0, 1])
def test_proposition_1_holds_for_every_temperature(rule: str | float, ddof: int) -> None:
    rewards = torch.tensor([[1.0, 0, 0, 1, 0.1], [0, 0, 0, 0, 1]], dtype=torch.float64)
    tau = target_temperature(rewards, rule, ddof=ddof)
    log_target = gibbs_target(rewards, tau)
    zeros = torch.zeros_like(rewards)
    torch.testing.assert_close(
        project("reverse_kl", zeros, log_target).coefficient,
        project("first_order", zeros, log_target).coefficient,
        rtol=1e-9,
        atol=1e-9,
    )


@given(groups())
def test_theorem_2_equality_and_bound(group: Group) -> None:
    log_target = gibbs_target(group["rewards"], group["tau"], group["anchor"])
    log_policy, log_start = listwise(group["log_ratio"]), listwise(group["anchor"])
    jeffreys = kl(log_target, log_start) + kl(log_start, log_target)
    reward = {
        name: (log_p.exp() * group["rewards"]).sum(-1)
        for name, log_p in (("target", log_target), ("policy", log_policy), ("start", log_start))
    }
    torch.testing.assert_close(reward["target"] - reward["start"], group["tau"] * jeffreys, rtol=1e-7, atol=1e-9)
    variation = 0.5 * (log_policy.exp() - log_target.exp()).abs().sum(-1)
    bound = reward["start"] + group["tau"] * jeffreys - 2 * group["rewards"].abs().max() * variation
    assert reward["policy"] >= bound - 1e-9
    found = diagnose(group["rewards"], group["tau"], group["anchor"], group["log_ratio"], log_target)
    torch.testing.assert_close(found.predicted_gain, group["tau"] * jeffreys, rtol=1e-7, atol=1e-9)


@given(groups())
def test_proposition_3(group: Group) -> None:
    log_target = gibbs_target(group["rewards"], group["tau"], group["anchor"])
    log_policy = listwise(group["log_ratio"])
    log_z = torch.logsumexp(listwise(group["anchor"]) + group["rewards"] / group["tau"][:, None], -1)
    expected = -group["tau"] * kl(log_policy, log_target) + group["tau"] * log_z
    torch.testing.assert_close(objective(log_policy, group), expected, rtol=1e-7, atol=1e-9)


@given(groups())
def test_corollary_2_no_response_of_the_target_is_lost(group: Group) -> None:
    log_target = gibbs_target(group["rewards"], group["tau"], group["anchor"])
    loss = float(project("forward_kl", group["log_ratio"], log_target).loss)
    for weight, probability in zip(log_target.exp()[0], listwise(group["log_ratio"]).exp()[0], strict=True):
        a = min(float(weight), 1 - 1e-12)
        bound = a * math.exp(-loss / a) * (1 - a) ** ((1 - a) / a) if a > 1e-6 else 0.0
        assert float(probability) >= bound - 1e-12


@given(st.floats(-20, 20, **FINITE), st.floats(-20, 20, **FINITE), st.floats(0.05, 10, **FINITE))
def test_c5_two_responses_in_closed_form(winner: float, loser: float, tau: float) -> None:
    dtype = torch.float64
    log_target = gibbs_target(torch.tensor([[1.0, 0.0]], dtype=dtype), torch.tensor([tau], dtype=dtype))
    log_policy = listwise(torch.tensor([[winner, loser]], dtype=dtype))
    cross_entropy = float(-(log_target.exp() * log_policy).sum())

    def log_sigmoid(x: float) -> float:
        return float(torch.nn.functional.logsigmoid(torch.tensor(x, dtype=dtype)))

    expected = -math.exp(log_sigmoid(1 / tau)) * log_sigmoid(winner - loser)
    expected -= math.exp(log_sigmoid(-1 / tau)) * log_sigmoid(loser - winner)
    assert cross_entropy == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(groups(), st.floats(0.0, 5.0, **FINITE))
def test_c7_the_entropy_bonus_moves_the_optimum(group: Group, gamma: float) -> None:
    """softmax((R + tau s_t)/(tau + gamma)) maximises J(w) + gamma H(w): no step away from it gains."""
    total = group["tau"] + gamma
    best = gibbs_target(group["rewards"], total, group["anchor"] * group["tau"][:, None] / total[:, None])

    def value(log_w: torch.Tensor) -> float:
        return float(objective(log_w, group) - gamma * (log_w.exp() * log_w).sum(-1))

    for direction in (group["log_ratio"], -group["log_ratio"]):
        assert value(best) >= value(torch.log_softmax(best + 0.1 * direction, -1)) - 1e-9


@pytest.mark.parametrize(
    ("correct", "beta"), zip(range(1, 8), (1.878, 1.202, 0.931, 0.762, 0.629, 0.503, 0.357), strict=True)
)
def test_binary_rewards_forward_kl_is_grpo_times_beta(correct: int, beta: float) -> None:
    rewards = torch.tensor([[1.0] * correct + [0.0] * (8 - correct)], dtype=torch.float64)
    tau = target_temperature(rewards, "group_std", floor=0.0)
    log_target, zeros = gibbs_target(rewards, tau), torch.zeros_like(rewards)
    ratio = project("forward_kl", zeros, log_target).coefficient / project("first_order", zeros, log_target).coefficient
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0])))
    assert float(ratio[0, 0]) == pytest.approx(beta, abs=6e-4)
    odds = math.exp(1 / float(tau)) - 1
    assert float(ratio[0, 0]) == pytest.approx(float(tau) * odds / (1 + correct / 8 * odds), rel=1e-12)


@pytest.mark.parametrize("rule", ["group_std", "one", "group_mean", 0.3])
@pytest.mark.parametrize("size", [2, 5, 8])
def test_the_control_is_the_forward_kl_on_policy_and_the_policy_gradient_up_to_a_scalar(
    rule: str | float, size: int
) -> None:
    for correct in range(size + 1):
        rewards = torch.tensor([[1.0] * correct + [0.0] * (size - correct)], dtype=torch.float64)
        log_target, zeros = gibbs_target(rewards, target_temperature(rewards, rule)), torch.zeros_like(rewards)
        control = project("first_order_beta", zeros, log_target).coefficient
        torch.testing.assert_close(control, project("forward_kl", zeros, log_target).coefficient, rtol=1e-9, atol=1e-12)
        later = torch.linspace(-0.3, 0.3, size, dtype=torch.float64)[None]
        torch.testing.assert_close(project("first_order_beta", later, log_target).coefficient, control)


@given(groups())
def test_the_control_has_the_size_of_the_forward_kl_for_any_rewards(group: Group) -> None:
    log_target, zeros = gibbs_target(group["rewards"], group["tau"]), torch.zeros_like(group["rewards"])
    control = project("first_order_beta", zeros, log_target).coefficient
    forward, plain = (project(name, zeros, log_target).coefficient for name in ("forward_kl", "first_order"))
    assert float(control.abs().sum()) == pytest.approx(float(forward.abs().sum()), rel=1e-6, abs=1e-12)
    assert float((control * plain).sum()) == pytest.approx(float(control.norm() * plain.norm()), rel=1e-6, abs=1e-12)


@given(groups(), st.sampled_from([0.25, 0.5, 0.75]))
@settings(max_examples=500)
def test_an_effective_temperature_has_its_share_of_the_responses(group: Group, share: float) -> None:
    rewards, size = group["rewards"], group["rewards"].shape[1]
    spread = float((rewards - rewards.mean()).abs().max())
    assume(spread == 0.0 or spread > 1e-300)  # below it numbers lose their digits
    tau = target_temperature(rewards, f"effective_{100 * share:.0f}", floor=0.0)
    found = float(effective_sample_size(gibbs_target(rewards, tau)))
    if spread == 0.0:
        assert found == pytest.approx(size)
        return
    sharpest = float(effective_sample_size(gibbs_target(rewards, torch.full_like(tau, math.exp(LOG_TAU[0]) * spread))))
    assert found == pytest.approx(max(share * size, sharpest), rel=1e-4)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("reward", [0.0, 1.0, -3.0])
def test_equal_rewards_ask_for_nothing_at_first_and_pull_back_after_drift(divergence: str, reward: float) -> None:
    rewards = torch.full((1, 4), reward)
    tau = target_temperature(rewards, "group_std")
    anchor = torch.tensor([[0.1, -0.2, 0.0, 0.3]])
    log_target = gibbs_target(rewards, tau, anchor)
    assert torch.equal(log_target, listwise(anchor))
    assert project(divergence, anchor, log_target).coefficient.abs().max() < 1e-7
    drifted = anchor + torch.tensor([[0.5, 0.0, 0.0, 0.0]])
    coefficient = project(divergence, drifted, log_target).coefficient[0]
    assert coefficient[0] > 0.01
    assert (coefficient[1:] < 0).all()


def test_after_a_collapse_forward_kl_still_pulls_and_reverse_kl_does_not() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    log_target = gibbs_target(rewards, torch.tensor([0.4], dtype=torch.float64))
    collapsed = torch.tensor([[-30.0, 0.0, -30.0, -30.0]], dtype=torch.float64)
    forward = project("forward_kl", collapsed, log_target).coefficient.abs().max()
    reverse = project("reverse_kl", collapsed, log_target).coefficient.abs().max()
    assert forward > 0.5
    assert reverse < 1e-9
