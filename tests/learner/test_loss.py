"""The loss's gradient against a float64 reference that knows nothing of micro-batches, ranks, packing or padding."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.learner.loss import coefficients
from lpo_ray.learner.merge_ranks import merge_reports
from lpo_ray.learner.packing import Packing, pack_step, pack_update
from lpo_ray.learner.targets import TargetRule, build_targets
from lpo_ray.learner.torch_learner import TorchPolicy
from lpo_ray.learner.updates import run_updates, score_pieces
from lpo_ray.objective import DIVERGENCES, TOKEN_CLIPS
from lpo_ray.records import Piece, StepReport, zero_anchor
from tests.support.builders import make_target
from tests.support.policies import (
    LAYOUTS,
    LENGTHS,
    OBJECTIVE,
    ONE_GROUP,
    ONE_RESPONSE,
    WHOLE,
    Rank,
    accumulated,
    anchors,
    assert_same,
    gradient,
    make_policy,
    make_targets,
    picked,
    reference,
    tempered,
    whole,
)


def grid() -> list[object]:
    """Every divergence and every clip; all their combinations among the slow ones."""
    quick = {*((name, "clamp", "mean") for name in DIVERGENCES), *(("forward_kl", clip, "sum") for clip in TOKEN_CLIPS)}
    points = itertools.product(DIVERGENCES, TOKEN_CLIPS, ["mean", "sum"])
    return [pytest.param(*point, marks=() if point in quick else pytest.mark.slow) for point in points]


@pytest.mark.parametrize(("divergence", "clip", "length_norm"), grid())
def test_the_gradient_does_not_depend_on_the_split(divergence: str, clip: str, length_norm: str) -> None:
    """The promise of this project, for every point of the grid: budgets x ranks x layouts."""
    objective = replace(OBJECTIVE, divergence=divergence, token_clip=clip, length_norm=length_norm)
    targets = make_targets()
    targets = [
        replace(target, anchor=s_t)
        for target, s_t in zip(targets, anchors(make_policy(), targets, length_norm), strict=True)
    ]
    expected = reference(targets, objective)
    for attention, share in LAYOUTS:
        for world_size in (1, 2):
            for budget in (ONE_RESPONSE, ONE_GROUP, WHOLE):
                update = pack_update(targets, Packing(world_size, budget, share))
                found, _ = accumulated([update], objective, attention, share)
                assert_same(found, expected)


@pytest.mark.parametrize("length_norm", ["mean", "sum"])
@pytest.mark.parametrize("clip", TOKEN_CLIPS)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "first_order"])
def test_a_tempered_group_is_projected_from_the_mixture(divergence: str, clip: str, length_norm: str) -> None:
    objective = replace(OBJECTIVE, divergence=divergence, token_clip=clip, length_norm=length_norm)
    targets = tempered(make_targets(), length_norm)
    assert sum(target.tempering < 1 for target in targets) > 2
    expected = reference(targets, objective)
    for world_size, budget, (attention, share) in ((1, WHOLE, LAYOUTS[0]), (2, ONE_RESPONSE, LAYOUTS[2])):
        update = pack_update(targets, Packing(world_size, budget, share))
        found, report = accumulated([update], objective, attention, share)
        assert_same(found, expected)
        raw = [group.log_ratio for group in report.groups]
        for measured, target in zip(raw, sorted(targets, key=lambda target: target.group.key), strict=True):
            np.testing.assert_allclose(measured, target.anchor.log_ratio, atol=1e-5)


@pytest.mark.parametrize("budget", [WHOLE, ONE_RESPONSE])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_a_tempered_group_of_equal_rewards_is_left_alone_at_first_and_pulled_back_later(
    divergence: str, budget: int
) -> None:
    """At pi_t the policy's simplex is the target's, softmax(lambda s_t). Without the offset it would be pushed."""
    objective = replace(OBJECTIVE, divergence=divergence)
    targets = tempered(make_targets(), rewards=1.0)
    update = pack_update(targets, Packing(1, budget, share_prompt=False))
    policy = make_policy()
    first = merge_reports([run_updates(policy, [update], 0, objective, 0.0)])
    assert max(np.abs(group.coefficient).max() for group in first.groups) < 1e-6
    forgotten = [replace(target, tempering=1.0) for target in targets]
    pushed = run_updates(policy, [pack_update(forgotten, Packing(1, WHOLE, False))], 0, objective, 0.0)
    assert max(np.abs(group.coefficient).max() for group in merge_reports([pushed]).groups) > 1e-3
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.3)
    whole_update = pack_update(targets, Packing(1, WHOLE, share_prompt=False))
    later = merge_reports([run_updates(policy, [whole_update], 0, objective, 0.0)])
    assert max(np.abs(group.coefficient).max() for group in later.groups) > 1e-3


@pytest.mark.parametrize("length_norm", ["mean", "sum"])
def test_the_clip_band_lies_around_the_mixture(length_norm: str) -> None:
    """A response all of whose tokens have drifted out of pi_b's band: tempered to nothing it learns, untouched not."""
    target = make_targets(LENGTHS[:1])[0]
    responses = [
        replace(response, behaviour_logprobs=response.behaviour_logprobs - np.float32(2.0 * (k == 0)))
        for k, response in enumerate(target.group.responses)
    ]
    group = replace(target.group, responses=tuple(responses))
    target = replace(target, scored=replace(target.scored, group=group))
    anchor = anchors(make_policy(), [target], length_norm)[0]
    objective = replace(OBJECTIVE, token_clip="clamp", length_norm=length_norm, clip_low=0.6, clip_high=1.0)
    fractions = []
    for tempering in (1.0, 0.0):
        stale = replace(target, anchor=anchor, tempering=tempering)
        update = pack_update([stale], Packing(1, WHOLE, share_prompt=False))
        fractions.append(run_updates(make_policy(), [update], 0, objective, 0.1)[0].groups[0].clip_fraction[0])
    assert fractions == [1.0, 0.0]


@pytest.mark.parametrize("length_norm", ["mean", "sum"])
@pytest.mark.parametrize("clip", TOKEN_CLIPS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_importance_weights_multiply_the_loss_of_each_token(divergence: str, clip: str, length_norm: str) -> None:
    """Weights are those of the policy before the first update, at later updates too."""
    objective = replace(
        OBJECTIVE, divergence=divergence, token_clip=clip, length_norm=length_norm, behaviour_from_engine=False,
        importance_cap=1.1,
    )  # fmt: skip
    targets = make_targets()
    expected = reference(targets, objective)
    for world_size, budget, (attention, share) in ((1, WHOLE, LAYOUTS[0]), (2, ONE_RESPONSE, LAYOUTS[2])):
        update = pack_update(targets, Packing(world_size, budget, share))
        found, _ = accumulated([update, update], objective, attention, share)
        assert_same(found, 2 * expected)


@settings(max_examples=25)
@given(data=st.data(), budget=st.sampled_from([ONE_RESPONSE, 40, WHOLE]), layout=st.sampled_from(LAYOUTS))
def test_the_gradient_does_not_depend_on_the_order_of_groups_and_responses(
    data: st.DataObject, budget: int, layout: tuple[str, bool]
) -> None:
    targets = make_targets(LENGTHS[:4], anchored=True)
    expected = reference(targets, OBJECTIVE)
    shuffled = []
    for target in data.draw(st.permutations(targets)):
        order = data.draw(st.permutations(range(len(target.log_target))))
        group = replace(target.group, responses=tuple(target.group.responses[k] for k in order))
        scored = replace(target.scored, group=group, rewards=target.scored.rewards[order])
        shuffled.append(
            replace(target, scored=scored, log_target=target.log_target[order], anchor=picked(target.anchor, order))
        )
    attention, share = layout
    found, _ = accumulated([pack_update(shuffled, Packing(2, budget, share))], OBJECTIVE, attention, share)
    assert_same(found, expected)


def test_groups_of_unequal_size_are_masked_not_padded() -> None:
    targets = make_targets([(3, 5), (1, 9, 4, 4), (6, 2, 2)], anchored=True)
    found, _ = accumulated([pack_update(targets, Packing(2, WHOLE, share_prompt=False))], OBJECTIVE)
    assert_same(found, reference(targets, OBJECTIVE))


def test_a_group_of_one_response_is_a_virtual_group() -> None:
    target = replace(make_target(0, (4,)), log_target=np.log([0.8]).astype(np.float32))
    update = pack_update([target], Packing(1, 100, share_prompt=False))
    report = run_updates(make_policy(), [update], 0, OBJECTIVE, 0.1)[0]
    assert report.groups[0].coefficient.tolist() == pytest.approx([0.5 - 0.8])
    assert report.groups[0].loss > 0


def test_coefficients_of_virtual_groups_are_bounded_by_a_half() -> None:
    """From rewards on: R = 0 and 1 have the baseline 1/2, and rewards far apart the bound at either end."""
    for rewards, tau, expected in (([0.0, 1.0], 0.5, 1 / (1 + math.exp(-1)) - 0.5), ([-1e9, 1e9], 1e-3, 0.5)):
        scored = [
            replace(make_target(number, (4,)).scored, rewards=np.array([reward], np.float32))
            for number, reward in enumerate(rewards)
        ]
        targets = build_targets(scored, zero_anchor(scored), TargetRule(tau, 0, 1e-6, anchored=True))
        _, found = coefficients([whole(target) for target in targets], torch.zeros(2), {}, "forward_kl")
        assert found.tolist() == pytest.approx([expected, -expected], abs=1e-6)


def test_around_the_anchor_the_clip_sees_what_the_step_does_and_not_how_old_a_token_is() -> None:
    """Every token has left the band around pi_b: around pi_b there is no gradient, around pi_t there is that of no clip
    at the first update, and at the second the step's own movement is clipped.
    """
    targets = []
    for target in make_targets(LENGTHS[:4], anchored=True):
        old = tuple(
            replace(response, behaviour_logprobs=response.behaviour_logprobs - np.float32(2))
            for response in target.group.responses
        )
        targets.append(replace(target, scored=replace(target.scored, group=replace(target.group, responses=old))))
    clamp = replace(OBJECTIVE, token_clip="clamp")
    around = replace(clamp, clip_around_anchor=True)
    update = pack_update(targets, Packing(2, ONE_GROUP, share_prompt=False))
    frozen, _ = accumulated([update], clamp)
    assert frozen.abs().max() == 0
    found, report = accumulated([update], around)
    expected, _ = accumulated([update], OBJECTIVE)
    assert_same(found, expected)
    assert all(group.clip_fraction.max() == 0 for group in report.groups)
    batch = pack_step(targets, Packing(1, WHOLE, False), step=0, seed=0, updates=2, learning_rate=0.1)
    first, second = run_updates(make_policy(), batch.updates, 0, around, 0.1)
    assert max(group.clip_fraction.max() for group in first.groups) == 0
    assert max(group.clip_fraction.max() for group in second.groups) > 0
    assert first.forwards == 2  # its own, and the second update's before the weights change


def test_a_recomputed_behaviour_reports_its_distance_to_the_engine() -> None:
    """The numbers that the anchor pass would have measured, without the pass."""
    targets = make_targets(anchored=True)
    updates = [pack_update(targets, Packing(1, WHOLE, share_prompt=False))]
    recomputed = run_updates(make_policy(), updates, 0, replace(OBJECTIVE, behaviour_from_engine=False), 0.1)[0]
    for target in targets:
        found = next(group for group in recomputed.groups if group.key == target.group.key)
        np.testing.assert_allclose(found.engine_drift, target.anchor.drift, rtol=1e-5)
        np.testing.assert_allclose(found.engine_kl, target.anchor.mismatch_kl, rtol=1e-4)
    engine = run_updates(make_policy(), updates, 0, OBJECTIVE, 0.1)[0]
    assert not any(group.engine_drift.any() or group.engine_kl.any() for group in engine.groups)


def poisoned(delta: torch.Tensor, coefficient: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """A user's token clip with a bug: it divides by zero where a token has not moved."""
    return coefficient * delta / (delta - delta.detach())


def test_a_loss_that_is_not_finite_skips_the_update_and_names_the_token() -> None:
    targets = make_targets(LENGTHS[:2], anchored=True)
    policy = make_policy()
    before = [parameter.detach().clone() for parameter in policy.model.parameters()]
    objective = replace(OBJECTIVE, token_clip="tests.learner.test_loss:poisoned")
    report = run_updates(policy, [pack_update(targets, Packing(1, WHOLE, False))], 0, objective, 0.1)[0]
    assert not report.norms.applied
    assert report.norms.update_ratio_by_kind == {}
    where = report.not_finite[0]
    assert where.what == "loss"
    assert str(where) == f"loss of {where.prompt_id} (attempt 0), response 0, token 0"
    for parameter, old in zip(policy.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None
    good = run_updates(policy, [pack_update(targets, Packing(1, WHOLE, False))], 0, OBJECTIVE, 0.1)[0]
    assert good.norms.applied
    assert math.isfinite(good.norms.gradient)


def test_the_reference_penalty_is_the_k3_estimate() -> None:
    """At the reference itself its gradient is 0; away from it, it is beta times the gradient of mean k3."""
    targets = make_targets(LENGTHS[:3], anchored=True)
    update = pack_update(targets, Packing(1, WHOLE, False))
    plain, _ = accumulated([update], OBJECTIVE)

    def penalised(other: TorchPolicy) -> tuple[torch.Tensor, StepReport]:
        policy = make_policy(kind=Rank)
        reports = run_updates(policy, [update], 0, replace(OBJECTIVE, reference_kl=0.3), 0.1, other)
        return gradient(policy), merge_reports([reports])

    same, report = penalised(make_policy())
    assert_same(same, plain, 1e-9)
    assert all(not group.reference_kl.any() for group in report.groups)
    other = make_policy()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.05)
    found, report = penalised(other)
    policy = make_policy("padded")
    total = torch.zeros((), dtype=torch.float64)
    for target in targets:
        for k in range(len(target.log_target)):
            ours, theirs = (score_pieces(scorer, [Piece(target, (k,))], 1.0).logprobs[0] for scorer in (policy, other))
            x = theirs.detach() - ours
            total = total + (x.exp() - x - 1).mean() / len(target.log_target)
    (0.3 * total / len(targets)).backward()
    assert_same(found - plain, gradient(policy), 1e-4)  # a small difference, and the model's norms work in fp32
    assert np.mean([group.reference_kl.mean() for group in report.groups]) == pytest.approx(
        float(total) / len(targets), rel=1e-5
    )
