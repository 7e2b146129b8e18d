"""The algorithm on one page: it runs, and its loss is that of the full system's learner."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lpo_ray.objective import gibbs_target, target_temperature
from lpo_ray.policy.scoring import TokenScores
from lpo_ray.tools import minimal


def test_the_gradient_on_policy_is_the_projection_by_the_means_of_the_tokens() -> None:
    """c_k = P - w*, and each token of response k has c_k over the number of its tokens, over the number of groups."""
    rewards = torch.tensor([[1.0, 0.0, 0.1, 0.0], [0.0, 0.0, 1.0, 1.0]])
    mask = torch.arange(5)[None] < torch.tensor([5, 2, 3, 1, 4, 4, 2, 5])[:, None]
    behaviour = -torch.rand(8, 5) * mask
    logprobs = behaviour.clone().requires_grad_()
    minimal.loss_of(TokenScores(logprobs, torch.zeros(8, 5), mask, 0.0), behaviour, rewards).backward()
    target = gibbs_target(rewards, target_temperature(rewards, "group_std")).exp()
    expected = ((0.25 - target).flatten() / mask.sum(-1))[:, None] * mask / 2
    assert logprobs.grad is not None
    assert torch.allclose(logprobs.grad, expected, atol=1e-7)


@pytest.mark.slow
def test_it_trains(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(minimal, "cached_base_policy", lambda folder, recipe: tiny_policy)
    for name, value in (("STEPS", 2), ("PROMPTS", 8), ("HELDOUT", 16), ("MAX_TOKENS", 8)):
        monkeypatch.setattr(minimal, name, value)
    minimal.main()
    said = capsys.readouterr().out
    assert "before: pass@1" in said and "step  2/2  reward" in said and "after: pass@1" in said
