"""An adapter's gradient is as exact as that of all weights: whatever the ranks, micro-batches, layouts and segments."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.learner.packing import Packing, pack_update
from lpo_ray.learner.torch_learner import TorchPolicy, TorchScorer
from lpo_ray.learner.updates import run_updates
from lpo_ray.objective import DIVERGENCES
from lpo_ray.policy.lora_layers import BaseScorer
from lpo_ray.policy.weights import published
from lpo_ray.records import StepNorms, TargetGroup
from tests.support.policies import (
    LAYOUTS,
    LENGTHS,
    OBJECTIVE,
    ONE_GROUP,
    ONE_RESPONSE,
    SHAPES,
    WHOLE,
    accumulated,
    anchors,
    assert_same,
    conversations_of,
    cut_at,
    gradient,
    make_policy,
    make_targets,
    reference,
)


def anchored(targets: Sequence[TargetGroup]) -> list[TargetGroup]:
    """The targets with the log-ratios that this policy has to their behaviour."""
    s_t = anchors(make_policy(adapter=True), targets)
    return [replace(target, anchor=anchor) for target, anchor in zip(targets, s_t, strict=True)]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_its_gradient_does_not_depend_on_the_split(divergence: str) -> None:
    objective = replace(OBJECTIVE, divergence=divergence, token_clip="clamp")
    targets = anchored(make_targets())
    expected = reference(targets, objective, adapter=True)
    assert float(expected.norm()) > 1e-3
    for attention, share in LAYOUTS:
        for world_size, budget in ((1, ONE_GROUP), (1, WHOLE), (2, ONE_RESPONSE), (2, WHOLE)):
            update = pack_update(targets, Packing(world_size, budget, share))
            assert_same(accumulated([update], objective, attention, share, adapter=True)[0], expected)


@settings(max_examples=15)
@given(
    st.lists(st.lists(st.integers(1, 9), max_size=3, unique=True).map(lambda at: tuple(sorted(at))), min_size=1),
    st.sampled_from(LAYOUTS), st.sampled_from([1, 2, 3]), st.sampled_from([ONE_RESPONSE, ONE_GROUP, WHOLE]),
)  # fmt: skip
def test_nor_on_the_segments_of_conversations(
    places: list[tuple[int, ...]], layout: tuple[str, bool], world_size: int, budget: int
) -> None:
    attention, share = layout
    plain = anchored(conversations_of(SHAPES))
    expected = reference(plain, OBJECTIVE, adapter=True)
    update = pack_update(cut_at(plain, places), Packing(world_size, budget, share))
    assert_same(accumulated([update], OBJECTIVE, attention, share, adapter=True)[0], expected)


def test_the_reference_is_the_model_without_it_and_costs_no_second_copy() -> None:
    objective = replace(OBJECTIVE, reference_kl=0.3)
    update = pack_update(make_targets(LENGTHS[:3]), Packing(1, ONE_GROUP, share_prompt=False))
    found = []
    for own in (True, False):
        policy = make_policy(adapter=True)
        policy.step = lambda _, policy=policy: found.append(gradient(policy).clone()) or StepNorms(0.0, True, {}, {})
        frozen = BaseScorer(policy, policy.model) if own else TorchScorer(make_policy().model)
        run_updates(policy, [update], 0, objective, 0.1, frozen)
    assert_same(found[0], found[1], 1e-12)
    without = accumulated([update], OBJECTIVE, adapter=True)[0]
    assert float((found[0] - without).norm()) > 1e-4  # the reference is another policy, and it shows


def test_a_step_changes_the_adapter_and_nothing_else() -> None:
    policy = make_policy(adapter=True)
    before, adapter = copy.deepcopy(policy.model.state_dict()), set(published(policy.model))
    report = run_updates(policy, [pack_update(make_targets(), Packing(1, WHOLE, False))], 0, OBJECTIVE, 0.01)[0]
    changed = {name for name, tensor in policy.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len(changed) == len(adapter) == 28 and all("lora_" in name for name in changed)
    assert set(report.norms.update_ratio_by_kind) == {"attention", "mlp"}


def test_a_bfloat16_adapter_has_master_weights() -> None:
    policy = TorchPolicy(make_policy(adapter=True).model.bfloat16(), make_policy()._settings)
    assert {master.dtype for master in policy._masters.values()} == {torch.float32}
    assert len(policy._masters) == 28
    state = sum(np.prod(master.shape) for master in policy._masters.values())
    assert state < 0.5 * sum(parameter.numel() for parameter in policy.model.parameters())
