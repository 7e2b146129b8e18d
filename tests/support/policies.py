"""A small policy, groups near it, ranks in threads, and the float64 reference of the learner's gradient."""

from __future__ import annotations

import math
import pickle
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from lpo_ray.learner.merge_ranks import merge_log_ratios, merge_reports
from lpo_ray.learner.packing import Packing, balance
from lpo_ray.learner.settings import Objective, OptimiserSettings
from lpo_ray.learner.targets import StaleRule, TargetRule, build_targets
from lpo_ray.learner.torch_learner import TorchPolicy
from lpo_ray.learner.updates import log_ratios_to_engine, run_updates, score_pieces
from lpo_ray.objective import clipped_token_loss, listwise, project
from lpo_ray.policy.lora import AdapterSettings
from lpo_ray.policy.lora_layers import inject
from lpo_ray.policy.weights import published
from lpo_ray.records import (
    Anchor,
    AnchorGroup,
    Conversation,
    IntArray,
    Piece,
    Response,
    Segment,
    StepNorms,
    StepReport,
    TargetGroup,
    Turn,
    Update,
)
from lpo_ray.rollout.transcript import Ending, Transcript
from tests.support.builders import make_target
from tests.support.segments import cut, make_conversation, with_conversations, with_group

ADAPTER = AdapterSettings(3, 6, ("all-linear",))
OBJECTIVE = Objective("forward_kl", "none", 0.2, 0.2, "mean", 1.0, behaviour_from_engine=True, reference_kl=0.0)
LENGTHS = [(3, 5, 2, 7), (1, 9, 4, 4), (6, 2, 2, 1), (5, 5, 8, 3), (2, 3), (7, 1, 1, 2, 4)]
LAYOUTS = [("padded", False), ("packed", False), ("packed", True)]
Turns = tuple[int, ...]
SHAPES: list[list[tuple[Turns, Turns]]] = [
    [((2, 3), (4,)), ((5,), ()), ((1, 1, 2), (1, 3))],
    [((1, 4), (2,)), ((3, 2), (6,))],
    [((2, 1, 1), (3, 2)), ((4, 3), (1,)), ((6,), ()), ((2, 2), (2,))],
]
"""groups of conversations: sampled tokens of each turn, and tokens of the environment between them"""
PLACES = [(3,), (), (2, 5), (4, 6), (7,), (1, 2, 3)]
"""where the responses of groups are cut into segments, one after the other"""
WHOLE = 10**6
ONE_GROUP = 60
ONE_RESPONSE = 1


def make_policy(
    attention: str = "packed",
    share_prompt: bool = False,
    kind: type[TorchPolicy] = TorchPolicy,
    *,
    adapter: bool = False,
):
    """``adapter``: only one is trained, and it is not zero."""
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
    if adapter:
        for parameter in inject(model, ADAPTER).values():
            torch.nn.init.normal_(parameter, std=0.1)
    return kind(model, OptimiserSettings((0.9, 0.999), 0.0, 1e9), attention=attention, share_prompt=share_prompt)


def make_targets(kind: Sequence[tuple[int, ...]] = LENGTHS, anchored: bool = False) -> list[TargetGroup]:
    """Groups whose behaviour is near the policy, so that the token clip cuts some tokens and not others."""
    return near_policy(
        [make_target(number, lengths, prompt_length=3 + number % 3) for number, lengths in enumerate(kind)], anchored
    )


def near_policy(targets: Sequence[TargetGroup], anchored: bool = False) -> list[TargetGroup]:
    """The targets, with a behaviour near the policy."""
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


def conversations_of(shapes: Sequence[Sequence[tuple[Turns, Turns]]], anchored: bool = False) -> list[TargetGroup]:
    """Groups of conversations, each in one segment."""
    targets = []
    for number, group in enumerate(shapes):
        rng = np.random.default_rng(number)
        made = [make_conversation(rng, turns, replies)[0] for turns, replies in group]
        target = make_target(number, [len(response.token_ids) for response in made], prompt_length=3 + number)
        targets.append(with_group(target, replace(target.group, responses=tuple(made))))
    return near_policy(targets, anchored)


def branched_targets(
    trees: Sequence[Sequence[tuple[int, int, int]]],
) -> tuple[list[TargetGroup], list[TargetGroup]]:
    """A group of responses that are trees of calls, and the same with every turn alone behind its whole context.

    Each call: tokens that are sampled, tokens that are said before it, and which of the places so far it goes on from.
    """
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 50, 3)
    made: list[tuple[Response, Response]] = []
    for tree in trees:
        transcript, places, turns = Transcript(), [prompt], []
        for sampled, said, start in tree:
            before = places[start % len(places)]
            context = before if before is prompt and not turns else np.concatenate([before, rng.integers(0, 50, said)])
            ids = rng.integers(0, 50, sampled)
            turn = Turn(ids, rng.normal(-2, 0.5, sampled).astype(np.float32), np.zeros(sampled, np.int64), "stop")
            transcript.said(transcript.asked(context), turn, "user")
            places.append(np.concatenate([context, ids]))
            turns.append(context)
        response = transcript.response(prompt, Ending("done"))
        assert response.conversation is not None
        made.append((response, replace(response, conversation=_turns_alone(response.conversation, prompt))))
    targets = []
    for which in (0, 1):
        responses = tuple(pair[which] for pair in made)
        target = make_target(0, [len(response.token_ids) for response in responses], prompt_length=3)
        group = replace(target.group, responses=responses)
        targets.append([with_group(target, replace(group, prompt=replace(group.prompt, token_ids=prompt)))])
    return targets[0], targets[1]


def _turns_alone(conversation: Conversation, prompt: IntArray) -> Conversation:
    """The conversation with a segment for each turn."""
    alone, number = [], 0
    for segment in conversation.segments:
        context = prompt if segment.context_ids is None else segment.context_ids
        everything = np.concatenate([context, segment.token_ids])
        places = np.flatnonzero(segment.sampled) + len(context)
        while len(places):
            size = conversation.turns[number]
            ids = everything[places[0] : places[0] + size]
            alone.append(Segment(ids, np.ones(size, dtype=np.bool_), everything[: places[0]], "alone"))
            places, number = places[size:], number + 1
    return replace(conversation, segments=tuple(alone))


def cut_at(targets: Sequence[TargetGroup], places: Sequence[Sequence[int]]) -> list[TargetGroup]:
    """The targets, their responses cut into segments at ``places``, one entry for each response, again and again."""
    found, number = [], 0
    for target in targets:
        conversations: list[Conversation | None] = []
        for response in target.group.responses:
            assert response.conversation is not None
            prompt = target.group.prompt.token_ids
            conversations.append(cut(response.conversation, prompt, places[number % len(places)]))
            number += 1
        found.append(with_conversations(target, conversations))
    return found


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
    """The gradient of all that is trained; nothing else has one."""
    trained = {id(parameter) for parameter in published(policy.model).values()}
    assert all((parameter.grad is not None) == (id(parameter) in trained) for parameter in policy.model.parameters())
    return torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters() if id(parameter) in trained])


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


def travelled(updates: Sequence[Update], rank: int) -> list[Update]:
    """The updates as they arrive at a rank."""
    return [pickle.loads(pickle.dumps(update.for_rank(rank))) for update in updates]


def accumulated(
    updates: Sequence[Update],
    objective: Objective,
    attention: str = "packed",
    share_prompt: bool = False,
    *,
    adapter: bool = False,
) -> tuple[torch.Tensor, StepReport]:
    """Gradient of all updates together, summed over ranks as ZeRO-3 does, and the merged reports."""
    world_size = len(updates[0].shares)
    barrier, shared = threading.Barrier(world_size), {}
    ranks = []
    for number in range(world_size):
        policy = make_policy(attention, share_prompt, Rank, adapter=adapter)
        policy.barrier, policy.shared, policy.number = barrier, shared, number
        ranks.append(policy)
    with ThreadPoolExecutor(world_size) as pool:
        runs = [
            pool.submit(run_updates, policy, travelled(updates, policy.number), policy.number, objective, 0.1)
            for policy in ranks
        ]
        reports = [run.result(60) for run in runs]
    assert len({tuple(report.forwards for report in reports_of) for reports_of in reports}) == 1
    return sum(gradient(policy) for policy in ranks), merge_reports(reports)


def reference(targets: Sequence[TargetGroup], objective: Objective, *, adapter: bool = False) -> torch.Tensor:
    """Autograd on one unpadded sequence at a time, in float64: a response's segments, each behind its context.

    Without a clip through the divergence itself; with one, through sum_k sg(c_k) A(clip(delta_k)) (App. D.3). Tempered
    groups: both see log-ratios from which the response's offset is taken. A cap weights the loss of each token by
    min(pi_old / pi_engine, cap), where pi_old is this policy and delta is to pi_old.
    """
    policy = make_policy("padded", adapter=adapter)
    total = torch.zeros((), dtype=torch.float64)
    for target in targets:
        rows, weights = [], []
        for k, response in enumerate(target.group.responses):
            parts = []
            for segment in response.segments:
                prompt = target.group.prompt.token_ids if segment.context_ids is None else segment.context_ids
                tokens = torch.from_numpy(np.concatenate([prompt, segment.token_ids]))[None]
                logits = policy.model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                parts.append(logits.gather(1, tokens[0, len(prompt) :, None])[:, 0][torch.from_numpy(segment.sampled)])
            logprobs = torch.cat(parts)
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


def tempered(targets: Sequence[TargetGroup], length_norm: str = "mean", rewards: float | None = None):
    """The targets of the tempering rule; ``rewards``: all the same."""
    s_t = anchors(make_policy(), targets, length_norm)
    scored = [target.scored for target in targets]
    if rewards is not None:
        scored = [replace(each, rewards=np.full_like(each.rewards, rewards)) for each in scored]
    rule = TargetRule("one", 0, 1e-6, anchored=True, stale=StaleRule("temper", 0.995, 1.0))
    return build_targets(scored, s_t, rule)
