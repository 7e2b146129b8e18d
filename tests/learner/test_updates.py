"""The learner's gradient against a float64 reference that knows nothing of micro-batches, ranks, packing or padding."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from lpo_ray.learner.merge_ranks import merge_log_ratios, merge_reports
from lpo_ray.learner.packing import Packing, balance, pack_step, pack_update
from lpo_ray.learner.settings import Objective, OptimiserSettings
from lpo_ray.learner.targets import StaleRule, TargetRule, build_targets
from lpo_ray.learner.torch_learner import TorchPolicy
from lpo_ray.learner.updates import log_ratios_to_engine, run_updates, score_pieces
from lpo_ray.objective import DIVERGENCES, TOKEN_CLIPS, clipped_token_loss, listwise, project
from lpo_ray.records import Anchor, AnchorGroup, Piece, StepNorms, StepReport, TargetGroup, Update
from tests.support.builders import make_target

OBJECTIVE = Objective("forward_kl", "none", 0.2, 0.2, "mean", 1.0, behaviour_from_engine=True, reference_kl=0.0)
LENGTHS = [(3, 5, 2, 7), (1, 9, 4, 4), (6, 2, 2, 1), (5, 5, 8, 3), (2, 3), (7, 1, 1, 2, 4)]
LAYOUTS = [("padded", False), ("packed", False), ("packed", True)]
WHOLE = 10**6
ONE_GROUP = 60
ONE_RESPONSE = 1


def make_policy(attention: str = "packed", share_prompt: bool = False, kind: type[TorchPolicy] = TorchPolicy):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).double()
    return kind(model, OptimiserSettings((0.9, 0.999), 0.0, 1e9), attention=attention, share_prompt=share_prompt)


def make_targets(kind: Sequence[tuple[int, ...]] = LENGTHS, anchored: bool = False) -> list[TargetGroup]:
    """Groups whose behaviour is near the policy, so that the token clip cuts some tokens and not others."""
    targets = [make_target(number, lengths, prompt_length=3 + number % 3) for number, lengths in enumerate(kind)]
    policy, near = make_policy(), []
    for number, target in enumerate(targets):
        scores = score_pieces(policy, [whole(target)], 1.0)
        rng = np.random.default_rng(number)
        responses = []
        for response, row in zip(target.group.responses, scores.logprobs.detach().numpy(), strict=True):
            length = len(response.token_ids)
            logprobs = row[:length] + rng.normal(0, 0.2, length)
            responses.append(replace(response, behaviour_logprobs=logprobs.astype(np.float32)))
        group = replace(target.group, responses=tuple(responses))
        near.append(replace(target, scored=replace(target.scored, group=group)))
    if anchored:
        s_t = anchors(policy, near)
        near = [replace(target, anchor=part) for target, part in zip(near, s_t, strict=True)]
    return near


def picked(anchor: AnchorGroup, order: Sequence[int]) -> AnchorGroup:
    return AnchorGroup(anchor.log_ratio[order], anchor.drift[order], anchor.mismatch_kl[order])


def anchors(policy: TorchPolicy, targets: Sequence[TargetGroup], length_norm: str = "mean") -> Anchor:
    scored = [target.scored for target in targets]
    shares = balance(scored, Packing(1, WHOLE, policy.share_prompt))
    return merge_log_ratios(
        scored, log_ratios_to_engine(policy, shares[0], replace(OBJECTIVE, length_norm=length_norm))
    )


def whole(target: TargetGroup) -> Piece[TargetGroup]:
    return Piece(target, tuple(range(len(target.group.responses))))


def gradient(policy: TorchPolicy) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])


class Rank(TorchPolicy):
    """One of several ranks in threads: sums are over all of them, gradients are kept instead of applied."""

    barrier: threading.Barrier
    shared: dict[int, torch.Tensor]
    number: int

    def step(self, learning_rate: float) -> StepNorms:
        return StepNorms(0.0, True, {}, {})

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        self.shared[self.number] = values
        self.barrier.wait(30)
        total = torch.stack([self.shared[rank] for rank in sorted(self.shared)]).sum(0)
        self.barrier.wait(30)
        return total


def accumulated(
    updates: Sequence[Update], objective: Objective, attention: str = "packed", share_prompt: bool = False
) -> tuple[torch.Tensor, StepReport]:
    """Gradient of all updates together, summed over ranks as ZeRO-3 does, and the merged reports."""
    world_size = len(updates[0].shares)
    barrier, shared = threading.Barrier(world_size), {}
    ranks = []
    for number in range(world_size):
        policy = make_policy(attention, share_prompt, Rank)
        policy.barrier, policy.shared, policy.number = barrier, shared, number
        ranks.append(policy)
    with ThreadPoolExecutor(world_size) as pool:
        runs = [pool.submit(run_updates, policy, updates, policy.number, objective, 0.1) for policy in ranks]
        reports = [run.result(60) for run in runs]
    assert len({tuple(report.forwards for report in reports_of) for reports_of in reports}) == 1
    return sum(gradient(policy) for policy in ranks), merge_reports(reports)


def reference(targets: Sequence[TargetGroup], objective: Objective) -> torch.Tensor:
    """Autograd on one unpadded sequence at a time, in float64.

    Without a clip through the divergence itself; with one, through sum_k sg(c_k) A(clip(delta_k)) (App. D.3). Tempered
    groups: both see log-ratios from which the response's offset is taken. A cap weights the loss of each token by
    min(pi_old / pi_engine, cap), where pi_old is this policy and delta is to pi_old.
    """
    policy = make_policy("padded")
    total = torch.zeros((), dtype=torch.float64)
    for target in targets:
        rows, weights = [], []
        for k, response in enumerate(target.group.responses):
            prompt = target.group.prompt.token_ids
            tokens = torch.from_numpy(np.concatenate([prompt, response.token_ids]))[None]
            logits = policy.model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            logprobs = logits.gather(1, tokens[0, len(prompt) :, None])[:, 0]
            delta = logprobs - torch.from_numpy(response.behaviour_logprobs).double()
            tokens = len(response.token_ids) if objective.length_norm == "sum" else 1
            if objective.behaviour_from_engine:
                rows.append(delta - (1 - target.tempering) * float(target.anchor.log_ratio[k]) / tokens)
                weights.append(torch.ones_like(delta))
            else:
                rows.append(logprobs - logprobs.detach())
                weights.append(delta.detach().exp().clamp(max=objective.importance_cap or math.inf))
        average = torch.mean if objective.length_norm == "mean" else torch.sum
        log_ratio = torch.stack([average(row) for row in rows])[None]
        log_target = torch.from_numpy(target.log_target).double()[None]
        capped = objective.importance_cap is not None
        if objective.token_clip == "none" and objective.divergence == "forward_kl" and not capped:
            total = total + (log_target.exp() * (log_target - listwise(log_ratio))).sum()
            continue
        c = project(objective.divergence, log_ratio.detach(), log_target).coefficient[0]
        for k, row in enumerate(rows):
            loss = clipped_token_loss(objective.token_clip, row[None], c[k : k + 1])[0]
            total = total + average(loss * weights[k] if capped else loss)
    (total / len(targets)).backward()
    return gradient(policy)


def assert_same(found: torch.Tensor, expected: torch.Tensor, relative: float = 1e-6) -> None:
    assert float((found - expected).norm()) <= relative * float(expected.norm())


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


def tempered(targets: Sequence[TargetGroup], length_norm: str = "mean", rewards: float | None = None):
    """The targets of the tempering rule; ``rewards``: all the same."""
    s_t = anchors(make_policy(), targets, length_norm)
    scored = [target.scored for target in targets]
    if rewards is not None:
        scored = [replace(each, rewards=np.full_like(each.rewards, rewards)) for each in scored]
    rule = TargetRule("one", 0, 1e-6, anchored=True, stale=StaleRule("temper", 0.995, 1.0))
    return build_targets(scored, s_t, rule)


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


def poisoned(delta: torch.Tensor, coefficient: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """A user's token clip with a bug: it divides by zero where a token has not moved."""
    return coefficient * delta / (delta - delta.detach())


def test_a_loss_that_is_not_finite_skips_the_update_and_names_the_token() -> None:
    targets = make_targets(LENGTHS[:2], anchored=True)
    policy = make_policy()
    before = [parameter.detach().clone() for parameter in policy.model.parameters()]
    objective = replace(OBJECTIVE, token_clip="tests.learner.test_updates:poisoned")
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
