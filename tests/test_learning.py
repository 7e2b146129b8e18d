"""The learner's gradient against a float64 reference that knows nothing of micro-batches, ranks or padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from lpo_ray.inprocess.learner import TorchPolicy
from lpo_ray.learning import Objective, OptimiserSettings, log_ratios_to_engine, run_updates, score_tokens
from lpo_ray.objective import listwise
from lpo_ray.packing import pack_step, pack_update
from lpo_ray.records import TargetGroup
from tests.builders import make_target

OBJECTIVE = Objective("forward_kl", "none", 0.2, 0.2, "mean", 1.0, behaviour_from_engine=True)
LENGTHS = [(3, 5, 2, 7), (1, 9, 4, 4), (6, 2, 2, 1), (5, 5, 8, 3), (2, 3, 4, 5), (7, 1, 1, 2)]


def make_policy() -> TorchPolicy:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).double()
    return TorchPolicy(model, OptimiserSettings((0.9, 0.999), 0.0, 1e9))


def make_targets(kind: Sequence[tuple[int, ...]] = LENGTHS) -> list[TargetGroup]:
    return [make_target(number, lengths, prompt_length=3 + number % 3) for number, lengths in enumerate(kind)]


def gradient(policy: TorchPolicy) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])


class Accumulating(TorchPolicy):
    """Keeps the gradient instead of stepping."""

    def step(self, learning_rate: float) -> float:
        return 0.0


def accumulated(targets: Sequence[TargetGroup], world_size: int, budget: int, objective: Objective) -> torch.Tensor:
    """Gradient of one update, summed over ranks as ZeRO-3 does."""
    total = torch.zeros(())
    update = pack_update(targets, world_size, budget)
    for rank in range(world_size):
        policy = make_policy()
        policy.__class__ = Accumulating
        run_updates(policy, [update], rank, objective, 0.1)
        total = total + gradient(policy)
    return total


def reference(targets: Sequence[TargetGroup], length_norm: str = "mean") -> torch.Tensor:
    """Autograd straight through KL(w* || softmax(s)), one unpadded sequence at a time, in float64."""
    policy = make_policy()
    losses = []
    for target in targets:
        log_ratios = []
        for response in target.group.responses:
            prompt = target.group.prompt.token_ids
            tokens = torch.from_numpy(np.concatenate([prompt, response.token_ids]))[None]
            logits = policy.model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            logprobs = logits.gather(1, tokens[0, len(prompt) :, None])[:, 0]
            delta = logprobs - torch.from_numpy(response.behaviour_logprobs).double()
            log_ratios.append(delta.mean() if length_norm == "mean" else delta.sum())
        log_target = torch.from_numpy(target.log_target).double()
        losses.append((log_target.exp() * (log_target - listwise(torch.stack(log_ratios)[None])[0])).sum())
    torch.stack(losses).mean().backward()
    return gradient(policy)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 60, 10**6])
@pytest.mark.parametrize("length_norm", ["mean", "sum"])
def test_the_gradient_does_not_depend_on_the_split(world_size: int, budget: int, length_norm: str) -> None:
    targets = make_targets()
    expected = reference(targets, length_norm)
    found = accumulated(targets, world_size, budget, replace(OBJECTIVE, length_norm=length_norm))
    # K-algebra is fp32 by contract; the reference is float64 throughout
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7 * float(expected.abs().max()) + 1e-8)


def test_groups_of_unequal_size_are_masked_not_padded() -> None:
    targets = make_targets([(3, 5), (1, 9, 4, 4), (6, 2, 2)])
    expected = reference(targets)
    torch.testing.assert_close(accumulated(targets, 2, 10**6, OBJECTIVE), expected, rtol=1e-4, atol=1e-7)


def test_a_group_of_one_response_is_a_virtual_group() -> None:
    target = replace(make_target(0, (4,)), log_target=np.log([0.8]).astype(np.float32))
    report = run_updates(make_policy(), [pack_update([target], 1, 100)], 0, OBJECTIVE, 0.1)[0]
    assert report.groups[0].coefficient.tolist() == pytest.approx([0.5 - 0.8])
    assert report.groups[0].loss > 0


def test_forwards_are_counted_and_the_first_update_needs_no_anchor_pass() -> None:
    batch = pack_step(make_targets(), step=0, updates=2, world_size=1, tokens_per_micro_batch=10**6, learning_rate=0.1)
    recomputed = replace(OBJECTIVE, behaviour_from_engine=False)
    assert [r.forwards for r in run_updates(make_policy(), batch.updates, 0, recomputed, 0.1)] == [2, 1]
    assert [r.forwards for r in run_updates(make_policy(), batch.updates, 0, OBJECTIVE, 0.1)] == [1, 1]


def test_on_policy_the_first_update_starts_at_ratio_one_and_the_second_does_not() -> None:
    batch = pack_step(make_targets(), step=0, updates=2, world_size=1, tokens_per_micro_batch=10**6, learning_rate=0.01)
    first, second = run_updates(make_policy(), batch.updates, 0, replace(OBJECTIVE, behaviour_from_engine=False), 0.01)
    assert all(not group.log_ratio.any() for group in first.groups)
    assert any(group.log_ratio.any() for group in second.groups)


def test_an_empty_micro_batch_runs_a_forward_and_changes_nothing() -> None:
    """ZeRO-3 ranks must run the same number of forwards; the extra ones may not move the gradient."""
    targets = make_targets(LENGTHS[:3])
    one = accumulated(targets, 1, 1, OBJECTIVE)
    update = pack_update(targets, 2, 1)
    assert {len(share) for share in update.shares} == {2}
    assert any(not micro_batch.groups for share in update.shares for micro_batch in share)
    torch.testing.assert_close(accumulated(targets, 2, 1, OBJECTIVE), one, rtol=1e-6, atol=1e-9)


def test_scores_are_those_of_each_response_alone() -> None:
    policy, targets = make_policy(), make_targets()
    together = score_tokens(policy, [target.group for target in targets], 0.7)
    row = 0
    for target in targets:
        for index, response in enumerate(target.group.responses):
            alone = replace(target.group, responses=(response,))
            single = score_tokens(policy, [alone], 0.7)
            width = len(response.token_ids)
            torch.testing.assert_close(together.logprobs[row, :width], single.logprobs[0], rtol=1e-5, atol=1e-6)
            assert not together.logprobs[row, width:].any(), index
            row += 1


def test_log_ratios_to_the_engine_keep_the_order() -> None:
    policy, targets = make_policy(), make_targets()
    scored = [target.scored for target in targets]
    one_by_one = [log_ratios_to_engine(policy, [[group]], OBJECTIVE)[0][0] for group in scored]
    together = log_ratios_to_engine(policy, [scored[:2], [], scored[2:]], OBJECTIVE)
    assert together[1] == []
    for left, right in zip(one_by_one, together[0] + together[2], strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
