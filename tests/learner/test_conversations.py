"""Responses of several turns: exactly one response each, wherever its sampled tokens stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.learner.merge_ranks import merge_reports
from lpo_ray.learner.packing import Packing, balance, pack_step, pack_update
from lpo_ray.learner.settings import Objective
from lpo_ray.learner.torch_learner import TorchPolicy
from lpo_ray.learner.updates import run_updates, score_pieces
from lpo_ray.objective import DIVERGENCES, TOKEN_CLIPS
from lpo_ray.policy.layout import lay_out
from lpo_ray.policy.scoring import response_logprobs
from lpo_ray.records import Conversation, Segment, StepReport, TargetGroup
from lpo_ray.telemetry.samples import read_step, write_samples
from tests.support.builders import make_target
from tests.support.policies import (
    LAYOUTS,
    OBJECTIVE,
    ONE_GROUP,
    ONE_RESPONSE,
    PLACES,
    SHAPES,
    WHOLE,
    Rank,
    accumulated,
    anchors,
    assert_same,
    branched_targets,
    conversations_of,
    cut_at,
    gradient,
    make_policy,
    reference,
    tempered,
    whole,
)
from tests.support.segments import mask_of, mixed_group, with_group


def coefficients_of(report: StepReport) -> np.ndarray:
    return np.concatenate([group.coefficient for group in sorted(report.groups, key=lambda group: group.key)])


def anchored(targets: Sequence[TargetGroup], length_norm: str) -> list[TargetGroup]:
    s_t = anchors(make_policy(), targets, length_norm)
    return [replace(target, anchor=anchor) for target, anchor in zip(targets, s_t, strict=True)]


def grid() -> list[object]:
    """Every divergence and every clip."""
    points = {
        *((name, "clamp", "mean") for name in DIVERGENCES),
        *(("forward_kl", clip, "sum") for clip in TOKEN_CLIPS),
    }
    return [pytest.param(*point) for point in sorted(points)]


@pytest.mark.parametrize(("divergence", "clip", "length_norm"), grid())
def test_a_conversation_is_projected_as_one_response(divergence: str, clip: str, length_norm: str) -> None:
    """Against autograd over one segment at a time: layouts x ranks x budgets, uncut and cut."""
    objective = replace(OBJECTIVE, divergence=divergence, token_clip=clip, length_norm=length_norm)
    plain = anchored(conversations_of(SHAPES), length_norm)
    expected = reference(plain, objective)
    segmented = cut_at(plain, PLACES)
    assert_same(reference(segmented, objective), expected)
    for targets, (attention, share), (world_size, budget) in (
        (plain, LAYOUTS[2], (2, ONE_GROUP)),
        (segmented, LAYOUTS[0], (1, WHOLE)),
        (segmented, LAYOUTS[1], (2, ONE_RESPONSE)),
        (segmented, LAYOUTS[2], (1, ONE_GROUP)),
    ):
        update = pack_update(targets, Packing(world_size, budget, share))
        assert_same(accumulated([update], objective, attention, share)[0], expected)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_cut_into_segments_gives_the_same_coefficients_and_gradient(data: st.DataObject) -> None:
    """As long as each sampled token keeps its context; over any ranks, micro-batches and packs."""
    turns = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
    shapes = [
        [(sampled, tuple(data.draw(st.integers(1, 4)) for _ in sampled[1:])) for sampled in group]
        for group in data.draw(st.lists(st.lists(turns, min_size=2, max_size=3), min_size=1, max_size=2))
    ]
    places = data.draw(st.lists(st.lists(st.integers(0, 16), max_size=4), min_size=1, max_size=6))
    attention, share = data.draw(st.sampled_from(LAYOUTS))
    packing = Packing(data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([1, 30, WHOLE])), share)
    objective = replace(OBJECTIVE, length_norm=data.draw(st.sampled_from(["mean", "sum"])), token_clip="clamp")
    plain = anchored(conversations_of(shapes), objective.length_norm)
    expected, report = accumulated([pack_update(plain, Packing(1, WHOLE, False))], objective)
    found, cut_report = accumulated([pack_update(cut_at(plain, places), packing)], objective, attention, share)
    assert_same(found, expected)
    np.testing.assert_allclose(coefficients_of(cut_report), coefficients_of(report), rtol=1e-5, atol=1e-7)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_tree_of_calls_gives_the_same_as_each_turn_alone_behind_its_context(data: st.DataObject) -> None:
    """Branches share what stands before them: each token is in the loss once, whichever segment shows it as context."""
    number = st.integers(1, 3)
    trees = data.draw(st.lists(st.lists(st.tuples(number, number, st.integers(0, 5)), min_size=1, max_size=5),
                               min_size=2, max_size=3))  # fmt: skip
    attention, share = data.draw(st.sampled_from(LAYOUTS))
    packing = Packing(data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([1, 30, WHOLE])), share)
    objective = replace(OBJECTIVE, length_norm=data.draw(st.sampled_from(["mean", "sum"])), token_clip="clamp")
    branched, alone = branched_targets(trees)
    segmented, apart = (anchored(targets, objective.length_norm) for targets in (branched, alone))
    expected = reference(apart, objective)
    assert_same(reference(segmented, objective), expected)
    found, report = accumulated([pack_update(segmented, packing)], objective, attention, share)
    assert_same(found, expected)
    _, apart_report = accumulated([pack_update(apart, Packing(1, WHOLE, False))], objective)
    np.testing.assert_allclose(coefficients_of(report), coefficients_of(apart_report), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("length_norm", ["mean", "sum"])
def test_tempering_recomputed_behaviour_and_reference_see_conversations_as_responses(length_norm: str) -> None:
    plain = conversations_of(SHAPES)
    mixture = tempered(plain, length_norm)
    assert any(target.tempering < 1 for target in mixture)
    settings_of: list[tuple[Objective, list[TargetGroup]]] = [
        (replace(OBJECTIVE, divergence="reverse_kl", token_clip="clamp", length_norm=length_norm), mixture),
        (replace(OBJECTIVE, length_norm=length_norm, behaviour_from_engine=False, importance_cap=1.1), plain),
    ]
    for objective, targets in settings_of:
        expected = reference(targets, objective)
        for world_size, budget, (attention, share) in ((1, WHOLE, LAYOUTS[0]), (2, ONE_RESPONSE, LAYOUTS[2])):
            update = pack_update(cut_at(targets, PLACES), Packing(world_size, budget, share))
            assert_same(accumulated([update], objective, attention, share)[0], expected)
    objective = replace(OBJECTIVE, length_norm=length_norm, reference_kl=0.3)
    frozen = make_policy()
    with torch.no_grad():
        for parameter in frozen.model.parameters():
            parameter.mul_(1.2)
    found = []
    for targets in (plain, cut_at(plain, PLACES)):
        policy = make_policy("packed", True, Rank)  # keeps its gradient
        reports = run_updates(policy, [pack_update(targets, Packing(1, WHOLE, True))], 0, objective, 0.0, frozen)
        found.append((gradient(policy), merge_reports([reports]).groups))
    assert_same(found[1][0], found[0][0])
    for left, right in zip(found[0][1], found[1][1], strict=True):
        assert left.reference_kl.min() > 0
        np.testing.assert_allclose(left.reference_kl, right.reference_kl, rtol=1e-5)


def changed(targets: Sequence[TargetGroup], change: Callable[[Segment], Segment]) -> list[TargetGroup]:
    """The first target's first response with its last segment changed; the others as they are."""
    first, *others = targets
    response, *rest = first.group.responses
    assert response.conversation is not None
    *before, last = response.conversation.segments
    conversation = replace(response.conversation, segments=(*before, change(last)))
    group = replace(first.group, responses=(replace(response, conversation=conversation), *rest))
    return [with_group(first, group), *others]


def scored(targets: Sequence[TargetGroup], attention: str, share: bool) -> list[np.ndarray]:
    scores = score_pieces(make_policy(attention, share), [whole(target) for target in targets], 1.0)
    return [row[mask].detach().numpy() for row, mask in zip(scores.logprobs, scores.mask, strict=True)]


@pytest.mark.parametrize(("attention", "share"), LAYOUTS)
def test_a_token_of_the_environment_changes_only_what_it_conditions(attention: str, share: bool) -> None:
    """The first response's turns have 2 and 3 tokens, with 4 of the environment between them."""
    targets = conversations_of(SHAPES)
    before = scored(targets, attention, share)

    def reply(segment: Segment) -> Segment:
        token_ids = segment.token_ids.copy()
        token_ids[4] = (token_ids[4] + 1) % 50
        return replace(segment, token_ids=token_ids)

    after = scored(changed(targets, reply), attention, share)
    np.testing.assert_array_equal(after[0][:2], before[0][:2])
    assert np.abs(after[0][2:] - before[0][2:]).min() > 1e-9
    for left, right in zip(after[1:], before[1:], strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(("attention", "share"), LAYOUTS)
def test_a_context_of_its_own_changes_only_its_own_segment(attention: str, share: bool) -> None:
    targets = cut_at(conversations_of(SHAPES), [(3,), ()])
    before = scored(targets, attention, share)
    for place in (0, 3, -1):  # in the prompt, behind it, its last token

        def rewritten(segment: Segment, place: int = place) -> Segment:
            assert segment.context_ids is not None
            context_ids = segment.context_ids.copy()
            context_ids[place] = (context_ids[place] + 1) % 50
            return replace(segment, context_ids=context_ids)

        after = scored(changed(targets, rewritten), attention, share)
        np.testing.assert_allclose(after[0][:2], before[0][:2], rtol=1e-12)
        assert np.abs(after[0][2:] - before[0][2:]).min() > 1e-9
        for left, right in zip(after[1:], before[1:], strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-12)


def test_what_stands_behind_the_last_sampled_token_is_no_part_of_a_response() -> None:
    """A segment that keeps it is refused, so it cannot change a thing."""
    with pytest.raises(ValueError, match="ends with one that was not sampled"):
        Segment(np.arange(3), mask_of(0, 2, 1))


def test_environment_tokens_are_in_no_mean() -> None:
    """A context as long as one likes is positions of a forward, and no token of the response."""
    found = []
    for size in (1, 40):
        segments = (Segment(np.arange(3), mask_of(0, 3)), Segment(np.array([7]), mask_of(0, 1), np.arange(size + 2)))
        target = make_target(0, [4, 4])
        response = replace(
            target.group.responses[0],
            token_ids=np.array([0, 1, 2, 7]),
            conversation=Conversation(segments, (3, 1)),
        )
        group = replace(target.group, responses=(response, target.group.responses[1]))
        found.append(Packing(1, WHOLE, True).tokens(whole(with_group(target, group))))
        assert group.num_tokens == 8
        assert response.turns == (3, 1)
    assert found[1] - found[0] == 39


@pytest.mark.parametrize("share", [False, True])
def test_packing_counts_the_positions_of_the_forward(share: bool) -> None:
    targets = [make_target(0, [1] * 4)]
    targets = [with_group(targets[0], mixed_group(0)), *cut_at(conversations_of(SHAPES), PLACES)]
    packing = Packing(1, WHOLE, share)
    for target in targets:
        piece = whole(target)
        layout = lay_out(
            [(target.group.prompt.token_ids, [r.segments for r in target.group.responses])],
            packed=True,
            share_prompt=share,
        )
        assert packing.tokens(piece) == layout.token_ids.numel()
        assert layout.lengths == tuple(len(response.token_ids) for response in target.group.responses)
    apart = Segment(np.array([1, 2]), mask_of(0, 2), np.array([9, 9, 9]))
    response = replace(
        make_target(0, [2]).group.responses[0], token_ids=np.array([1, 2]), conversation=Conversation((apart,), (2,))
    )
    lone = with_group(make_target(0, [2]), replace(make_target(0, [2]).group, responses=(response,)))
    assert packing.tokens(whole(lone)) == 5  # nothing stands behind the prompt, so it is nowhere


def test_a_response_of_many_segments_stays_in_one_micro_batch() -> None:
    targets = cut_at(conversations_of(SHAPES), PLACES)
    for share in balance(targets, Packing(2, ONE_RESPONSE, share_prompt=False)):
        for micro_batch in share:
            assert sum(len(piece.responses) for piece in micro_batch.pieces) <= 1


@pytest.mark.parametrize(("attention", "share"), LAYOUTS)
def test_log_probs_of_a_conversation_are_those_of_its_segments(attention: str, share: bool) -> None:
    group = mixed_group(1)
    policy, alone = make_policy(attention, share), make_policy("padded")
    item = (group.prompt.token_ids, [response.segments for response in group.responses])
    for found, response in zip(response_logprobs(policy, [item]), group.responses, strict=True):
        parts = [response_logprobs(alone, [(group.prompt.token_ids, [(segment,)])])[0] for segment in response.segments]
        np.testing.assert_allclose(found, np.concatenate(parts), rtol=1e-9)


def test_a_recorded_step_of_conversations_is_replayed_bit_for_bit(tmp_path: Path) -> None:
    """From the samples: the same batch, and after it the same weights."""
    targets = cut_at(conversations_of(SHAPES, anchored=True), PLACES)
    packing, digests = Packing(1, ONE_GROUP, share_prompt=True), []
    policy = make_policy("packed", True)
    batch = pack_step(targets, packing, step=0, seed=7, updates=2, learning_rate=0.01)
    report = merge_reports([run_updates(policy, batch.updates, 0, OBJECTIVE, 0.01)])
    digests.append(weights_of(policy))
    path = tmp_path / "step_000001.parquet"
    write_samples(path, targets, report, step=1, learning_rate=0.01, divergence="forward_kl", after={}, decode=str)
    recorded = read_step(path)
    policy = make_policy("packed", True)
    batch = pack_step(
        recorded.targets, packing, step=0, seed=7, updates=recorded.updates, learning_rate=recorded.learning_rate
    )
    run_updates(policy, batch.updates, 0, OBJECTIVE, recorded.learning_rate)
    digests.append(weights_of(policy))
    assert torch.equal(*digests)
    assert not torch.equal(digests[0], weights_of(make_policy()))


def weights_of(policy: TorchPolicy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])
