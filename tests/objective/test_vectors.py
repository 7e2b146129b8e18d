"""Every number of vectors.json: the paper's formulas computed independently in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from lpo_ray.objective import (
    clipped_token_loss,
    diagnose,
    gibbs_target,
    listwise,
    project,
    response_log_ratio,
    target_temperature,
)

VECTORS = json.loads((Path(__file__).parent.parent / "data" / "vectors.json").read_text())
CASES = {case["name"]: case for case in VECTORS["cases"]}
PROJECTIONS = {
    "forward_kl": ("L_fwd", "c_fwd"),
    "reverse_kl": ("L_rev", "c_rev"),
    "jensen_shannon": ("js", "c_js"),
    "pointwise": ("CE_fwd", "point_c"),
}


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-6}


def row(values: object, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([values], dtype=dtype)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.parametrize("name", CASES)
def test_target_and_policy(name: str, dtype: torch.dtype) -> None:
    inputs, expect = CASES[name]["inputs"], CASES[name]["expect"]
    log_target = gibbs_target(row(inputs["R"], dtype), row(inputs["tau"], dtype), row(inputs["s_t"], dtype))
    torch.testing.assert_close(log_target.exp(), row(expect["w"], dtype), **tolerance(dtype))
    torch.testing.assert_close(
        listwise(row(inputs["s_theta"], dtype)).exp(), row(expect["P"], dtype), **tolerance(dtype)
    )
    torch.testing.assert_close(listwise(row(inputs["s_t"], dtype)).exp(), row(expect["Pt"], dtype), **tolerance(dtype))


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]["tau_kind"] in ("grpo", "dr", "maxrl")])
def test_temperature(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    rule = {"grpo": "group_std", "dr": "one", "maxrl": "group_mean"}[case["tau_kind"]]
    tau = target_temperature(row(case["inputs"]["R"], dtype), rule, ddof=case["std_ddof"], floor=case["tau_eps"] or 0.0)
    torch.testing.assert_close(tau, row(case["inputs"]["tau"], dtype), **tolerance(dtype))


@pytest.mark.parametrize("divergence", PROJECTIONS)
@pytest.mark.parametrize("name", CASES)
def test_projection(name: str, divergence: str, dtype: torch.dtype) -> None:
    inputs, expect = CASES[name]["inputs"], CASES[name]["expect"]
    log_target = gibbs_target(row(inputs["R"], dtype), row(inputs["tau"], dtype), row(inputs["s_t"], dtype))
    loss, coefficient = project(divergence, row(inputs["s_theta"], dtype), log_target)
    loss_key, coefficient_key = PROJECTIONS[divergence]
    torch.testing.assert_close(coefficient, row(expect[coefficient_key], dtype), **tolerance(dtype))
    torch.testing.assert_close(loss, row(expect[loss_key], dtype), **tolerance(dtype))


@pytest.mark.parametrize("name", CASES)
def test_policy_gradient(name: str, dtype: torch.dtype) -> None:
    """first_order reads A_k off a target built without the anchor; pg_coef of the file is the ascent direction."""
    inputs, expect = CASES[name]["inputs"], CASES[name]["expect"]
    log_target = gibbs_target(row(inputs["R"], dtype), row(inputs["tau"], dtype))
    coefficient = project("first_order", row(inputs["s_theta"], dtype), log_target).coefficient
    torch.testing.assert_close(-coefficient, row(expect["pg_coef"], dtype), **tolerance(dtype))


@pytest.mark.parametrize("name", CASES)
def test_diagnostics(name: str) -> None:
    case, dtype = CASES[name], torch.float64
    inputs, expect = case["inputs"], case["expect"]
    rewards, tau, anchor, log_ratio = (row(inputs[key], dtype) for key in ("R", "tau", "s_t", "s_theta"))
    found = diagnose(rewards, tau, anchor, log_ratio, gibbs_target(rewards, tau, anchor))
    pairs = {
        "target_entropy": expect["H_w"],
        "policy_entropy": expect["H_P"],
        "kl_target_policy": expect["L_fwd"],
        "kl_policy_target": expect["L_rev"],
        "total_variation": expect["eps_proj"],
        "predicted_gain": expect["target_gain"],
        "realised_gain": expect["R_P"] - expect["R_Pt"],
        "effective_sample_size": 1 / sum(p * p for p in expect["Pt"]),
    }
    for name, value in pairs.items():
        assert float(getattr(found, name)) == pytest.approx(value, rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize(("kind", "suffix"), [("clamp", "literal"), ("one_sided", "ppo_style")])
@pytest.mark.parametrize("case", VECTORS["token_clip_cases"], ids=lambda case: case["name"])
def test_token_clip(case: dict, kind: str, suffix: str, dtype: torch.dtype) -> None:
    delta = torch.tensor(case["delta"], dtype=dtype, requires_grad=True)
    lengths = torch.tensor(case["lens"])
    mask = torch.arange(delta.shape[1]) < lengths[:, None]
    high = math.exp(case["log_hi"]) - 1
    low = 1 - math.exp(case["log_lo"])
    per_token = clipped_token_loss(kind, delta, torch.tensor(case["c"], dtype=dtype), low=low, high=high)
    loss = response_log_ratio(per_token, mask, "mean").sum()
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(case[f"loss_{suffix}"], dtype=dtype), **tolerance(dtype))
    for found, expected in zip(delta.grad, case[f"grad_{suffix}"], strict=True):
        torch.testing.assert_close(found[: len(expected)], torch.tensor(expected, dtype=dtype), **tolerance(dtype))
        assert not found[len(expected) :].any()


@pytest.mark.parametrize("case", VECTORS["virtual_group_K1"])
def test_virtual_group(case: dict, dtype: torch.dtype) -> None:
    """C.2: against a virtual response of the batch's baseline, the forward KL of the pair has c."""
    pair = row([case["R"], case["b"]], dtype)
    log_target = gibbs_target(pair, row(case["tau"], dtype))
    coefficient = project("forward_kl", torch.zeros_like(pair), log_target).coefficient[0, :1]
    torch.testing.assert_close(coefficient, torch.tensor([case["c"]], dtype=dtype), **tolerance(dtype))


@pytest.mark.parametrize("case", VECTORS["entropy_bonus"])
def test_entropy_bonus_is_another_temperature(case: dict) -> None:
    """C.7: a bonus gamma moves the optimum to softmax((R + tau s)/(tau + gamma)): tau + gamma, anchor shrunk."""
    total = case["tau"] + case["gamma"]
    shrunk = row(case["s_t"], torch.float64) * case["tau"] / total
    found = gibbs_target(row(case["R"], torch.float64), row(total, torch.float64), shrunk).exp()
    torch.testing.assert_close(found, row(case["w_tilde"], torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("trajectory", VECTORS["projection_trajectories"], ids=lambda t: t["divergence"])
def test_projected_descent_follows_the_trajectory(trajectory: dict) -> None:
    """Descent on the K logits themselves, s <- s - eta c, reproduces every recorded step and approaches the target."""
    dtype = torch.float64
    divergence = {"fwd": "forward_kl", "rev": "reverse_kl"}[trajectory["divergence"]]
    rewards, anchor = row(trajectory["R"], dtype), row(trajectory["s_t"], dtype)
    log_target = gibbs_target(rewards, row(trajectory["tau"], dtype), anchor)
    log_ratio, recorded = anchor.clone(), {step["step"]: step for step in trajectory["steps"]}
    for number in range(max(recorded) + 1):
        if number in recorded:
            torch.testing.assert_close(log_ratio, row(recorded[number]["s"], dtype), **tolerance(dtype))
            for name, key in (("forward_kl", "L_fwd"), ("reverse_kl", "L_rev")):
                loss = float(project(name, log_ratio, log_target).loss)
                assert loss == pytest.approx(recorded[number][key], rel=1e-9, abs=1e-9)
        log_ratio = log_ratio - trajectory["eta"] * project(divergence, log_ratio, log_target).coefficient


def test_exact_projection_iterated_improves_the_reward_every_time() -> None:
    """Prop. 2: pi_{t+1} = softmax(R/tau + log pi_t)."""
    dtype, recorded = torch.float64, VECTORS["prop2_iteration"]
    rewards, tau = row(recorded["R"], dtype), row(recorded["tau"], dtype)
    policy = row(recorded["iterates"][0]["pi"], dtype)
    for iterate in recorded["iterates"]:
        torch.testing.assert_close(policy, row(iterate["pi"], dtype), **tolerance(dtype))
        assert float((policy * rewards).sum()) == pytest.approx(iterate["R"], rel=1e-9)
        policy = gibbs_target(rewards, tau, policy.log()).exp()
    values = [iterate["R"] for iterate in recorded["iterates"]]
    assert values == sorted(values)
