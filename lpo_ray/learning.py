"""The learner's arithmetic, the same for one process and for each ZeRO-3 rank.

Legend: N responses of a micro-batch, P its groups, K responses of a group, T tokens, V vocabulary.

For each update the loss is (LPO.md of the paper's notation; App. D.3)
``1/B sum_x sum_k sg(c_k) A_i(clip(delta_k,i))`` with B the global number of prompts, A the mean (or sum) over the
response's tokens, delta the token log-ratio to the behaviour, and c_k the projection's coefficient, computed in fp32
from the *raw* log-ratios of all K responses.

With ``behaviour_from_engine=False`` the behaviour is the policy before the step's first update. The first update then
needs no pass of its own (its forward *is* that policy: delta = 0), later updates one no-grad pass each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lpo_ray.objective import clipped_token_loss, project, response_log_ratio
from lpo_ray.records import (
    FloatArray,
    IntArray,
    MicroBatch,
    ProjectedGroup,
    PromptGroup,
    ScoredGroup,
    Update,
    UpdateReport,
)


@dataclass(frozen=True, slots=True)
class Objective:
    """A point of the grid: divergence x token clip (the target temperature was applied by the target builder)."""

    divergence: str
    token_clip: str
    clip_low: float
    clip_high: float
    length_norm: str
    sampling_temperature: float
    behaviour_from_engine: bool


@dataclass(frozen=True, slots=True)
class OptimiserSettings:
    """AdamW and the gradient clip; the learning rate comes with each batch."""

    betas: tuple[float, float]
    weight_decay: float
    gradient_clip: float


class TrainablePolicy(Protocol):
    """What differs between a plain torch model and a ZeRO-3 rank. With ZeRO-3 all ranks must make the same calls."""

    def logits(self, token_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
        """[N, keep, V]: logits at the last ``keep`` positions of right-padded rows."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of ``loss``, summed (not averaged) over ranks."""
        ...

    def step(self, learning_rate: float) -> float:
        """Apply the accumulated gradient; returns its norm over all ranks before clipping."""
        ...


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of N responses padded to T tokens. fp32."""

    logprobs: Tensor
    """[N, T] of the sampled tokens at the sampling temperature; 0 where padded"""
    entropy: Tensor
    """[N, T] nats, without gradient"""
    mask: Tensor
    """[N, T] bool"""


def score_tokens(policy: TrainablePolicy, groups: Sequence[PromptGroup], temperature: float) -> TokenScores:
    """One forward over all responses of ``groups``, in order. An empty list still runs a forward (see MicroBatch)."""
    rows = [(group.prompt.token_ids, r.token_ids) for group in groups for r in group.responses]
    if not rows:
        rows = [(np.zeros(1, np.int64), np.zeros(1, np.int64))]
    lengths = [len(prompt) + len(response) for prompt, response in rows]
    token_ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    attention = torch.zeros_like(token_ids)
    for row, (prompt, response) in enumerate(rows):
        token_ids[row, : lengths[row]] = torch.from_numpy(np.concatenate([prompt, response]))
        attention[row, : lengths[row]] = 1
    first = min(len(prompt) for prompt, _ in rows) - 1  # logits before it predict prompt tokens only
    logits = policy.logits(token_ids, attention, max(lengths) - first)
    width = max(len(response) for _, response in rows)
    starts = torch.tensor([len(prompt) - 1 - first for prompt, _ in rows])
    counts = torch.tensor([len(response) for _, response in rows])
    columns = torch.arange(width)
    mask = columns < counts[:, None]
    positions = torch.where(mask, starts[:, None] + columns, 0).to(logits.device)
    mask = mask.to(logits.device)
    targets = token_ids.to(logits.device).gather(1, (positions + first + 1).clamp(max=token_ids.shape[1] - 1))
    selected = logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1])).float() / temperature
    log_softmax = selected.log_softmax(-1)
    logprobs = log_softmax.gather(2, targets[..., None])[..., 0].masked_fill(~mask, 0.0)
    with torch.no_grad():
        entropy = -(log_softmax.exp() * log_softmax).sum(-1).masked_fill(~mask, 0.0)
    return TokenScores(logprobs, entropy, mask)


def sequence_logprobs(policy: TrainablePolicy, sequence: IntArray) -> FloatArray:
    """Log-probs of tokens 1..T-1 of one sequence at temperature 1, [T-1]: what the engines' probe must agree with."""
    token_ids = torch.from_numpy(np.array(sequence))[None]
    with torch.no_grad():
        logits = policy.logits(token_ids, torch.ones_like(token_ids), len(sequence))[0, :-1]
    return logits.float().log_softmax(-1).gather(1, token_ids[0, 1:, None].to(logits.device))[:, 0].cpu().numpy()


def log_ratios_to_engine(
    policy: TrainablePolicy, micro_batches: Sequence[Sequence[ScoredGroup]], objective: Objective
) -> list[list[FloatArray]]:
    """s_t of each group, [K] each: the current policy over the engine's own log-probs, as micro-batches come in."""
    result: list[list[FloatArray]] = []
    for micro_batch in micro_batches:
        groups = [scored.group for scored in micro_batch]
        with torch.no_grad():
            scores = score_tokens(policy, groups, objective.sampling_temperature)
            if not groups:
                result.append([])
                continue
            delta = scores.logprobs - _engine_logprobs(groups, scores.mask)
            log_ratio = response_log_ratio(delta, scores.mask, objective.length_norm)
        result.append([part.cpu().numpy() for part in log_ratio.split([len(g.responses) for g in groups])])
    return result


def run_updates(
    policy: TrainablePolicy, updates: Sequence[Update], rank: int, objective: Objective, learning_rate: float
) -> list[UpdateReport]:
    """All updates of a step on this rank's share, in order. All ranks must call this at the same time."""
    forwards = 0
    behaviour: dict[tuple[int, int], Tensor] = {}
    if not objective.behaviour_from_engine:
        for number, update in enumerate(updates[1:], start=1):
            for position, micro_batch in enumerate(update.shares[rank]):
                sampled = [target.group for target in micro_batch.groups]
                with torch.no_grad():
                    scores = score_tokens(policy, sampled, objective.sampling_temperature)
                behaviour[number, position] = scores.logprobs
                forwards += 1
    reports = []
    for number, update in enumerate(updates):
        groups: list[ProjectedGroup] = []
        for position, micro_batch in enumerate(update.shares[rank]):
            cached = behaviour.get((number, position))
            loss, projected = _micro_batch_loss(policy, micro_batch, cached, number, objective)
            policy.backward(loss / update.num_prompts)
            groups += projected
            forwards += 1
        norm = policy.step(learning_rate)
        reports.append(UpdateReport(tuple(groups), norm, forwards))
        forwards = 0
    return reports


def _micro_batch_loss(
    policy: TrainablePolicy, micro_batch: MicroBatch, cached: Tensor | None, update: int, objective: Objective
) -> tuple[Tensor, list[ProjectedGroup]]:
    """Sum over the micro-batch's prompts of sum_k sg(c_k) A(clip(delta_k)), and what telemetry wants of each group."""
    groups = [target.group for target in micro_batch.groups]
    scores = score_tokens(policy, groups, objective.sampling_temperature)
    if not groups:
        return scores.logprobs.sum() * 0.0, []
    engine = _engine_logprobs(groups, scores.mask)
    recomputed = scores.logprobs.detach() if cached is None else cached
    behaviour = engine if objective.behaviour_from_engine else recomputed
    delta = scores.logprobs - behaviour
    with torch.no_grad():
        log_ratio = response_log_ratio(delta, scores.mask, objective.length_norm)
        loss_P, coefficient_N = _coefficients(micro_batch, log_ratio, objective.divergence)
    token_loss = clipped_token_loss(
        objective.token_clip, delta, coefficient_N, low=objective.clip_low, high=objective.clip_high
    )
    response_loss = response_log_ratio(token_loss, scores.mask, objective.length_norm)
    with torch.no_grad():
        low, high = np.log1p(-objective.clip_low), np.log1p(objective.clip_high)
        outside = ((delta < low) | (delta > high)).float()
        columns = torch.stack(
            [
                log_ratio,
                response_loss,
                coefficient_N,
                response_log_ratio(scores.entropy, scores.mask, "mean"),
                response_log_ratio(outside, scores.mask, "mean"),
                response_log_ratio(engine - behaviour, scores.mask, "mean"),
            ]
        ).float()
    sizes = [len(group.responses) for group in groups]
    projected = [
        _projected(group, update, float(loss), part)
        for group, loss, part in zip(groups, loss_P, _numpy_columns(columns, sizes), strict=True)
    ]
    return response_loss.sum(), projected


def _projected(group: PromptGroup, update: int, loss: float, columns: list[FloatArray]) -> ProjectedGroup:
    log_ratio, surrogate, coefficient, entropy, clip_fraction, mismatch = columns
    return ProjectedGroup(
        prompt_id=group.prompt.prompt_id,
        attempt=group.attempt,
        update=update,
        log_ratio=log_ratio,
        surrogate=surrogate,
        coefficient=coefficient,
        loss=loss,
        entropy=entropy,
        clip_fraction=clip_fraction,
        engine_mismatch=mismatch,
    )


def _numpy_columns(columns: Tensor, sizes: Sequence[int]) -> list[list[FloatArray]]:
    return [list(part.cpu().numpy()) for part in columns.split(list(sizes), dim=1)]


def _coefficients(micro_batch: MicroBatch, log_ratio: Tensor, divergence: str) -> tuple[Tensor, Tensor]:
    """Divergence of each group [P] and coefficient of each response [N], in fp32.

    A group of one response is its own virtual group (C.2): the target builder stored log sigmoid((R - b)/tau), and
    c = 1/2 - sigmoid((R - b)/tau); its divergence is that of the two Bernoulli distributions.
    """
    targets = micro_batch.groups
    sizes = [len(target.log_target) for target in targets]
    width = max(max(sizes), 2)
    mask = torch.zeros(len(targets), width, dtype=torch.bool)
    ratio_PK = torch.zeros(len(targets), width)
    target_PK = torch.zeros(len(targets), width)
    for row, (target, part) in enumerate(zip(targets, log_ratio.float().cpu().split(sizes), strict=True)):
        log_target = torch.from_numpy(np.array(target.log_target, dtype=np.float32))
        size = sizes[row]
        ratio_PK[row, :size] = part if size > 1 else 0.0
        target_PK[row, :size] = log_target
        if size == 1:
            target_PK[row, 1] = torch.log1p(-log_target.exp().clamp(max=1 - 1e-7))[0]
        mask[row, : max(size, 2)] = True
    projection = project(divergence, ratio_PK, target_PK, mask=mask)
    coefficient_N = torch.cat([projection.coefficient[row, :size] for row, size in enumerate(sizes)])
    return projection.loss.to(log_ratio.device), coefficient_N.to(log_ratio.device)


def _engine_logprobs(groups: Sequence[PromptGroup], mask: Tensor) -> Tensor:
    """[N, T] log-probs the engine reported, 0 where padded."""
    rows = [response.behaviour_logprobs for group in groups for response in group.responses]
    padded = np.zeros(tuple(mask.shape), dtype=np.float32)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return torch.from_numpy(padded).to(mask.device)
