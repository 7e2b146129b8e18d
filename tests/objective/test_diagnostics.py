"""Diagnostics against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lpo_ray.objective import diagnose, gibbs_target


def test_diagnostics_by_hand_with_a_masked_entry() -> None:
    """R = (1, 0), tau = 1/log 3, on-policy: w* = (3/4, 1/4). A group of two in a batch of three columns."""
    nan = math.nan
    rewards = torch.tensor([[1.0, 0.0, nan], [2.0, 2.0, -5.0]], dtype=torch.float64)
    tau = torch.tensor([1 / math.log(3), math.inf], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, False]])
    anchor = torch.tensor([[0.0, 0.0, nan], [0.0, 0.0, 0.0]], dtype=torch.float64)
    log_ratio = torch.tensor([[math.log(4.0), 0.0, nan], [0.0, 0.0, 0.0]], dtype=torch.float64)
    found = diagnose(rewards, tau, anchor, log_ratio, gibbs_target(rewards, tau, anchor, mask=mask), mask=mask)
    log = math.log
    expect = {
        "target_entropy": [0.75 * log(4 / 3) + 0.25 * log(4), log(2)],
        "policy_entropy": [0.8 * log(5 / 4) + 0.2 * log(5), log(2)],
        "kl_target_policy": [0.75 * log(0.75 / 0.8) + 0.25 * log(0.25 / 0.2), 0.0],
        "kl_policy_target": [0.8 * log(0.8 / 0.75) + 0.2 * log(0.2 / 0.25), 0.0],
        "total_variation": [0.05, 0.0],
        "predicted_gain": [0.25, 0.0],
        "realised_gain": [0.3, 0.0],
        "effective_sample_size": [2.0, 2.0],
        "equal_rewards": [False, True],
    }
    for name, values in expect.items():
        assert getattr(found, name).tolist() == pytest.approx(values, abs=1e-12), name
