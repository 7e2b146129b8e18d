"""A step's updates: which forwards they run, what ranks share, and what is reported of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lpo_ray.learner.merge_ranks import merge_log_ratios
from lpo_ray.learner.packing import Packing, balance, pack_step, pack_update
from lpo_ray.learner.settings import OptimiserSettings
from lpo_ray.learner.torch_learner import TorchPolicy
from lpo_ray.learner.updates import log_ratios_to_engine, run_updates, score_pieces
from lpo_ray.policy.scoring import score_bundles
from lpo_ray.records import Piece, Segment
from tests.support.policies import (
    LAYOUTS,
    LENGTHS,
    OBJECTIVE,
    ONE_GROUP,
    ONE_RESPONSE,
    WHOLE,
    accumulated,
    anchors,
    assert_same,
    make_policy,
    make_targets,
    reference,
    tempered,
    whole,
)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_later_update_subtracts_the_offset_from_what_it_collects(world_size: int) -> None:
    """The weights stay, so the second update, which collects split groups from all ranks, must equal the first."""
    objective = replace(OBJECTIVE, divergence="reverse_kl", token_clip="clamp")
    targets = tempered(make_targets())
    update = pack_update(targets, Packing(world_size, ONE_RESPONSE, share_prompt=False))
    found, report = accumulated([update, update], objective)
    assert_same(found, 2 * reference(targets, objective))
    for first, second in zip(report.updates[0].groups, report.updates[1].groups, strict=True):
        np.testing.assert_allclose(first.coefficient, second.coefficient, atol=1e-6)


def test_importance_weights_cost_no_forward_and_the_cap_matters() -> None:
    targets = make_targets()
    update = pack_update(targets, Packing(1, WHOLE, share_prompt=False))
    found = [
        accumulated([update, update], replace(OBJECTIVE, behaviour_from_engine=False, importance_cap=cap))
        for cap in (None, 1.0, 1e9)
    ]
    assert len({tuple(update.forwards for update in report.updates) for _, report in found}) == 1
    none, tight, loose = (gradient for gradient, _ in found)
    assert min(float((a - b).norm()) for a, b in ((none, tight), (none, loose), (tight, loose))) > 1e-3


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "recomputed"])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("budget", [ONE_RESPONSE, 40])
def test_a_later_update_collects_the_log_ratios_of_split_groups_from_all_ranks(
    budget: int, world_size: int, engine: bool
) -> None:
    """The weights do not change between these updates, so the second must equal the first, which knows them."""
    objective = replace(OBJECTIVE, behaviour_from_engine=engine, divergence="reverse_kl")
    targets = make_targets(anchored=engine)
    packing = Packing(world_size, budget, share_prompt=False)
    update, once = pack_update(targets, packing), pack_update(targets, Packing(1, WHOLE, share_prompt=False))
    alone, first = accumulated([once], objective)
    found, report = accumulated([update, update], objective)
    assert_same(found, 2 * alone)
    for group, expected in zip(report.updates[1].groups, first.updates[0].groups, strict=True):
        assert group.responses == expected.responses
        np.testing.assert_allclose(group.log_ratio, expected.log_ratio, atol=1e-6)
        np.testing.assert_allclose(group.coefficient, expected.coefficient, atol=1e-6)


def test_a_group_shared_by_ranks_that_outnumber_the_groups() -> None:
    targets = make_targets([(3, 5, 2, 7)], anchored=True)
    update = pack_update(targets, Packing(2, WHOLE, share_prompt=False))
    assert all(any(micro_batch.pieces for micro_batch in share) for share in update.shares)
    found, _ = accumulated([update], OBJECTIVE)
    assert_same(found, reference(targets, OBJECTIVE))


def test_one_response_for_two_ranks_leaves_one_an_empty_share() -> None:
    """What a step can shrink to: the rank without work runs the same forwards, and the gradient is that of one rank."""
    target = replace(make_targets([(4,)])[0], log_target=np.log([0.8]).astype(np.float32))
    alone, _ = accumulated([pack_update([target], Packing(1, WHOLE, False))], OBJECTIVE)
    batch = pack_step([target], Packing(2, WHOLE, False), step=0, seed=0, updates=2, learning_rate=0.1)
    assert [sum(len(mb.pieces) for mb in share) for share in batch.updates[0].shares] == [1, 0]
    found, report = accumulated(batch.updates, OBJECTIVE)
    assert_same(found, alone, 1e-12)
    assert len(report.updates) == 1


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "recomputed"])
@pytest.mark.parametrize("budget", [WHOLE, ONE_RESPONSE])
def test_forwards_are_counted(budget: int, engine: bool) -> None:
    """One a micro-batch, and on top of it only: the second update's behaviour, scored before the first changes the
    weights, unless the engine's stands for it; and the log-ratios of split groups, where the anchor has them not.
    """
    targets = make_targets(anchored=engine)
    packing = Packing(1, budget, share_prompt=False)
    batch = pack_step(targets, packing, step=0, seed=0, updates=2, learning_rate=0.1)
    objective = replace(OBJECTIVE, behaviour_from_engine=engine)
    forwards = [report.forwards for report in run_updates(make_policy(), batch.updates, 0, objective, 0.1)]
    first, second = (len(update.shares[0]) for update in batch.updates)
    assert first + second == (2 if budget == WHOLE else sum(len(lengths) for lengths in LENGTHS))
    recomputed = 0 if engine else second
    collected = second if budget == ONE_RESPONSE else 0
    assert forwards == [first + recomputed, second + collected]


def test_lpo_runs_as_many_forwards_as_grpo() -> None:
    targets = make_targets(anchored=True)
    batch = pack_step(targets, Packing(1, 80, False), step=0, seed=0, updates=2, learning_rate=0.1)
    grpo = replace(OBJECTIVE, divergence="first_order", token_clip="ppo_ratio")
    counts = [
        [report.forwards for report in run_updates(make_policy(), batch.updates, 0, objective, 0.1)]
        for objective in (OBJECTIVE, grpo)
    ]
    assert counts[0] == counts[1]


def test_on_policy_the_first_update_starts_at_ratio_one_and_the_second_does_not() -> None:
    batch = pack_step(make_targets(), Packing(1, WHOLE, False), step=0, seed=0, updates=2, learning_rate=0.01)
    first, second = run_updates(make_policy(), batch.updates, 0, replace(OBJECTIVE, behaviour_from_engine=False), 0.01)
    assert all(not group.log_ratio.any() for group in first.groups)
    assert any(group.log_ratio.any() for group in second.groups)


def test_an_empty_micro_batch_runs_a_forward_and_changes_nothing() -> None:
    """ZeRO-3 ranks must run the same number of forwards; the extra ones may not move the gradient."""
    targets = make_targets(LENGTHS[:3], anchored=True)
    one, _ = accumulated([pack_update(targets, Packing(1, 40, False))], OBJECTIVE)
    update = pack_update(targets, Packing(2, 40, False))
    assert any(not micro_batch.pieces for share in update.shares for micro_batch in share)
    found, _ = accumulated([update], OBJECTIVE)
    assert_same(found, one, 1e-12)


@pytest.mark.parametrize(("attention", "share"), LAYOUTS)
def test_scores_are_those_of_each_response_alone(attention: str, share: bool) -> None:
    policy, alone = make_policy(attention, share), make_policy("padded")
    targets = make_targets()
    together = score_pieces(policy, [whole(target) for target in targets], 0.7)
    assert together.padding == 0.0 if attention == "packed" else together.padding > 0
    row = 0
    for target in targets:
        for k, response in enumerate(target.group.responses):
            single = score_pieces(alone, [Piece(target, (k,))], 0.7)
            width = len(response.token_ids)
            torch.testing.assert_close(together.logprobs[row, :width], single.logprobs[0], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(together.entropy[row, :width], single.entropy[0], rtol=1e-9, atol=1e-9)
            assert not together.logprobs[row, width:].any()
            row += 1


def test_log_ratios_to_the_engine_keep_the_order_over_pieces_and_ranks() -> None:
    policy, targets = make_policy(), make_targets()
    scored = [target.scored for target in targets]
    together = anchors(policy, targets)
    for budget in (ONE_RESPONSE, ONE_GROUP):
        shares = balance(scored, Packing(3, budget, share_prompt=False))
        parts = [found for share in shares for found in log_ratios_to_engine(policy, share, OBJECTIVE)]
        for left, right in zip(merge_log_ratios(scored, parts), together, strict=True):
            for name in ("log_ratio", "drift", "mismatch_kl"):
                np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=1e-5, atol=1e-6)


def test_the_anchor_pass_measures_ratio_drift_and_divergence() -> None:
    policy, targets = make_policy(), make_targets(LENGTHS[:2])
    for target, anchor in zip(targets, anchors(policy, targets), strict=True):
        for k, response in enumerate(target.group.responses):
            ours = score_pieces(policy, [Piece(target, (k,))], 1.0).logprobs[0].detach().numpy()
            delta = ours - response.behaviour_logprobs
            assert anchor.log_ratio[k] == pytest.approx(delta.mean(), rel=1e-5, abs=1e-7)
            assert anchor.drift[k] == pytest.approx(np.abs(delta).mean(), rel=1e-5)
            assert anchor.mismatch_kl[k] == pytest.approx((np.exp(delta) - 1 - delta).mean(), rel=1e-5)
            assert anchor.mismatch_kl[k] > 0


def exploding(delta: torch.Tensor, coefficient: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Finite in the forward pass (0), not in the backward pass (1/sqrt(0))."""
    return (delta - delta.detach()).abs().sqrt()


def test_a_gradient_that_is_not_finite_behind_a_finite_loss_names_the_groups_that_weigh_most() -> None:
    targets = make_targets(LENGTHS[:2], anchored=True)
    objective = replace(OBJECTIVE, token_clip="tests.learner.test_updates:exploding")
    report = run_updates(make_policy(), [pack_update(targets, Packing(1, WHOLE, False))], 0, objective, 0.1)[0]
    assert not report.norms.applied
    assert str(report.not_finite[0]).startswith("gradient of train-0000")
    assert report.not_finite[0].token is None


def test_norms_by_kind_add_up_and_the_update_ratio_is_what_the_step_did() -> None:
    policy = make_policy()
    update = pack_update(make_targets(anchored=True), Packing(1, WHOLE, False))
    for number in range(3):
        before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
        report = run_updates(policy, [update], 0, OBJECTIVE, 1e-3)[0]
        norms = report.norms
        assert sum(value**2 for value in norms.gradient_by_kind.values()) == pytest.approx(norms.gradient**2, rel=1e-5)
        moved = [(name, p.detach(), p.detach() - before[name]) for name, p in policy.model.named_parameters()]
        mlp = [(p, d) for name, p, d in moved if "mlp" in name]
        expected = math.sqrt(sum(float(d.square().sum()) for _, d in mlp)) / math.sqrt(
            sum(float(p.square().sum()) for p, _ in mlp)
        )
        assert norms.update_ratio_by_kind["mlp"] == pytest.approx(expected, rel=1e-4), number
        assert set(norms.gradient_by_kind) == {"embedding", "attention", "mlp", "norm"}


def test_bfloat16_keeps_fp32_master_weights() -> None:
    """Updates below bf16's resolution add up in the masters instead of being lost."""
    double = make_policy()
    policy = TorchPolicy(double.model.bfloat16(), OptimiserSettings((0.9, 0.999), 0.0, 1e9))
    start = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    update = pack_update(make_targets(anchored=True), Packing(1, WHOLE, False))
    for _ in range(4):
        run_updates(policy, [update], 0, OBJECTIVE, 1e-6)
    weights = policy.state()["weights"]
    name = "model.embed_tokens.weight"
    assert weights[name].dtype == torch.float32
    moved = float((weights[name] - start[name].float()).abs().max())
    assert 1e-6 < moved < 1e-5
    assert torch.equal(weights[name].bfloat16(), policy.model.get_parameter(name))


def test_bfloat16_gradients_are_summed_in_fp32() -> None:
    """However many micro-batches: their sum is that of their gradients, which bf16 would round 64 times."""
    rng = np.random.default_rng(0)
    bundles = [(rng.integers(0, 50, 4), [(Segment.answer(rng.integers(0, 50, 8)),)]) for _ in range(64)]

    def policy() -> TorchPolicy:
        return TorchPolicy(make_policy().model.bfloat16(), OptimiserSettings((0.9, 0.999), 0.0, 1e9))

    def gradient_of(policy: TorchPolicy) -> torch.Tensor:
        return torch.cat([master.grad.flatten() for master in policy._masters.values()])

    together, each = policy(), []
    for bundle in bundles:
        for one in (together, alone := policy()):
            one.backward(score_bundles(one, [bundle], 1.0).logprobs.mean())
        each.append(gradient_of(alone).double())
        assert all(weight.grad is None for weight in together._weights.values())
    expected = torch.stack(each).sum(0)
    found = gradient_of(together)
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    together.step(1e-3)
    assert all(master.grad is None for master in together._masters.values())
