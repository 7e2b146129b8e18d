"""What the driver sends: to each rank its share of a step and no more, to the target builder numbers only."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.learner import group as learner_group
from actors.learner.group import Formation, LearnerGroup, LearnerRules
from actors.learner.target_builder import RemoteTargetBuilder, TargetBuilder
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.learner.packing import Packing, pack_step
from lpo_ray.learner.targets import TargetRule, build_targets
from lpo_ray.records import MicroBatch, Process, StepNorms, TargetGroup, UpdateReport, zero_anchor
from tests.support.builders import make_scored, make_target
from tests.support.fakes import FakeEvents, projected
from tests.support.ray_fakes import Reference

RULE = TargetRule("group_std", 0, 1e-6, anchored=True)


def sent(message: object) -> bytes:
    """What Ray writes for it: its pickle and, beside that, the arrays."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    return b"".join([head, *(buffer.raw() for buffer in buffers)])


class Rank:
    """Keeps what it is sent; learns nothing."""

    def __init__(self, number: int) -> None:
        self.number, self.messages = number, list[bytes]()

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *message: Reference(self._answer(name, *message)))

    def _answer(self, name: str, *message: object) -> object:
        if name == "address":
            return "host", 1
        if name == "start":
            return Process(self.number, "node", "host", ())
        self.messages.append(sent(message))
        if name != "project":
            return []
        return [
            UpdateReport(tuple(groups_of(update.shares[self.number])), StepNorms(1.0, True, {}, {}), 1, 0.0, ())
            for update in message[0].updates
        ]


def groups_of(share: tuple[MicroBatch[TargetGroup], ...]) -> list:
    return [projected(piece.item, 0) for micro_batch in share for piece in micro_batch.pieces if piece.is_whole]


def content_of(target: TargetGroup, k: int) -> bytes:
    """What is found in a message that has the response, and in no other."""
    return target.group.responses[k].behaviour_logprobs.tobytes()


def with_noise(target: TargetGroup) -> TargetGroup:
    """The group with much that only a verifier reads."""
    prompt = replace(
        target.group.prompt, answer="the answer" * 500, row={"tests": "assert" * 500}, raw_answer="raw" * 9
    )
    scored = replace(target.scored, group=replace(target.group, prompt=prompt), details=("said" * 100,) * 4)
    return replace(target, scored=scored)


async def learner_of(monkeypatch: pytest.MonkeyPatch, packing: Packing) -> tuple[LearnerGroup, list[Rank]]:
    monkeypatch.setattr(learner_group.ray, "put", lambda value: value)
    ranks = [Rank(number) for number in range(packing.world_size)]

    async def form(size: int) -> Formation:
        return Formation(ranks, SimpleNamespace())

    rules = LearnerRules(packing.world_size, 1, packing, 5.0, 5.0, 5.0, RestartRule(0, 1.0, 0.0))
    learner = LearnerGroup(form, rules, FakeEvents())
    await learner.start()
    return learner, ranks


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 4), st.integers(1, 6), st.sampled_from([90, 200, 2000]), st.integers(1, 2))
async def test_a_rank_is_sent_its_own_responses_once_and_no_others(
    monkeypatch: pytest.MonkeyPatch, world_size: int, num_groups: int, budget: int, updates: int
) -> None:
    packing = Packing(world_size, budget, share_prompt=False)
    targets = [with_noise(make_target(n, (60, 70, 80, 90))) for n in range(num_groups)]
    learner, ranks = await learner_of(monkeypatch, packing)
    batch = pack_step(targets, packing, step=0, seed=0, updates=updates, learning_rate=0.1)
    await learner.log_ratios([target.scored for target in targets])
    await learner.project(batch)
    own = [{(p.item.group.key, k) for u in batch.updates for mb in u.shares[rank.number] for p in mb.pieces
            for k in p.responses} for rank in ranks]  # fmt: skip
    for rank in ranks:
        _, message = rank.messages
        for target in targets:
            for k in range(4):
                count = int((target.group.key, k) in own[rank.number])
                assert message.count(content_of(target, k)) == count
        for text in (b"answeranswer", b"assertassert", b"rawraw", b"saidsaid"):
            assert not any(text in found for found in rank.messages)
    for call in (0, 1):  # every response goes to one rank, whichever it is
        messages = [rank.messages[call] for rank in ranks]
        for target in targets:
            assert [sum(found.count(content_of(target, k)) for found in messages) for k in range(4)] == [1] * 4
    for rank, keys in zip(ranks, own, strict=True):
        tokens = sum(60 + 10 * k for _, k in keys)
        assert len(rank.messages[1]) < 12 * tokens + 3000 * (1 + num_groups)


@pytest.mark.parametrize("length", [3, 3000])
async def test_the_target_builder_is_sent_rewards_and_anchors_whatever_the_responses_have(length: int) -> None:
    groups = [make_scored(n, (length,) * 4) for n in range(8)]
    anchor = zero_anchor(groups)
    actor, messages, answers = TargetBuilder(StepSchedule(((0, RULE),))), list[bytes](), list[bytes]()

    class Actor:
        """The actor at hand."""

        async def call(self, remote, what: str, seconds: float) -> object:
            def build(*message: object) -> object:
                messages.append(sent(message))
                answer = actor.build(*message)
                answers.append(sent(answer))
                return answer

            return remote(SimpleNamespace(build=SimpleNamespace(remote=build)))

    built = await RemoteTargetBuilder(Actor()).build(groups, anchor, 0)
    for found, expected in zip(built, build_targets(groups, anchor, RULE), strict=True):
        assert found.scored is expected.scored
        np.testing.assert_array_equal(found.log_target, expected.log_target, strict=True)
        assert (found.temperature, found.tempering) == (expected.temperature, expected.tempering)
    [message], [answer] = messages, answers
    per_group = 8 * 200
    assert len(message) < 2 * per_group
    assert len(answer) < 2 * per_group
    with pytest.raises(ValueError, match="8 groups but 7 anchors"):
        await RemoteTargetBuilder(Actor()).build(groups, anchor[1:], 0)
