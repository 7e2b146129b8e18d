"""A tiny policy, an objective, and targets for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from lpo_ray.learner.merge_ranks import merge_log_ratios
from lpo_ray.learner.packing import Packing, balance
from lpo_ray.learner.torch_learner import TorchPolicy
from lpo_ray.learner.updates import Objective, OptimiserSettings, log_ratios_to_engine, score_pieces
from lpo_ray.records import Anchor, Piece, TargetGroup
from tests.support.builders import make_target

OBJECTIVE = Objective("forward_kl", "none", 0.2, 0.2, "mean", 1.0, behaviour_from_engine=True, reference_kl=0.0)
LENGTHS = [(3, 5, 2, 7), (1, 9, 4, 4), (6, 2, 2, 1), (5, 5, 8, 3), (2, 3), (7, 1, 1, 2, 4)]
WHOLE = 10**6


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


def anchors(policy: TorchPolicy, targets: Sequence[TargetGroup], length_norm: str = "mean") -> Anchor:
    scored = [target.scored for target in targets]
    shares = balance(scored, Packing(1, WHOLE, policy.share_prompt))
    return merge_log_ratios(
        scored, log_ratios_to_engine(policy, shares[0], replace(OBJECTIVE, length_norm=length_norm))
    )


def whole(target: TargetGroup) -> Piece[TargetGroup]:
    return Piece(target, tuple(range(len(target.group.responses))))
