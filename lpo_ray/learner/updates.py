"""The learner's arithmetic, the same for one process and for each ZeRO-3 rank.

Legend: N responses of a micro-batch, P its groups, K responses of a group, T tokens.

For each update the loss is (App. D.3)
``1/B sum_x sum_k sg(c_k) A_i(clip(delta_k,i))`` with B the global number of prompts, A the mean (or sum) over the
response's tokens, delta the token log-ratio to the behaviour, and c_k the projection's coefficient, computed in fp64
from the *raw* fp32 log-ratios of all K responses. A tempered group counts as sampled from the geometric mixture
pi_b^lambda pi_t^(1 - lambda): its log-ratios are those to pi_b minus (1 - lambda) s_t, in the simplex and in the clip.

How many forwards. A group that is whole in its micro-batch needs none but its own: the coefficients come from the
forward that is differentiated. A group that is split needs its K log-ratios first: at the first update they are the
anchor's, which is known; at later ones a no-grad pass over the micro-batches that hold pieces collects them from all
ranks. With ``behaviour_from_engine=False`` the behaviour is the policy before the step's first update: that update's
own forward *is* it (delta = 0), later updates take one no-grad pass each before the weights change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.learner.packing import Packing
from lpo_ray.objective import clipped_token_loss, project, response_log_ratio, truncated_importance
from lpo_ray.policy.scoring import Scorer, TokenScores, score_bundles
from lpo_ray.records import (
    AnchorGroup,
    AnchorPiece,
    G,
    Key,
    MicroBatch,
    NotFinite,
    Piece,
    ProjectedGroup,
    ScoredGroup,
    StepNorms,
    TargetGroup,
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
    reference_kl: float
    """weight of the k3 estimate of KL(policy || reference), mean over tokens, responses and prompts; 0: no reference"""
    clip_around_anchor: bool = False
    """with the engine's behaviour, the token clip is a band around pi_t, the policy before the step's first update, and
    not around pi_b; with a recomputed one the two are the same
    """
    importance_cap: float | None = None
    """with a recomputed behaviour, the policy's loss of a token is multiplied by min(pi_behaviour / pi_engine, this);
    None: it is not
    """


@dataclass(frozen=True, slots=True)
class OptimiserSettings:
    """AdamW and the gradient clip; the learning rate comes with each batch."""

    betas: tuple[float, float]
    weight_decay: float
    gradient_clip: float


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """How a learner is built, on Ray and in one process."""

    model_path: str
    dtype: str
    """float32, or bfloat16 with fp32 master weights"""
    objective: StepSchedule[Objective]
    """only its divergence changes"""
    optimiser: OptimiserSettings
    packing: Packing
    attention: str
    """auto, packed or padded"""
    gradient_checkpointing: bool
    reference_path: str
    """of the frozen reference; read when objective.reference_kl > 0"""
    threads: int
    zero: Mapping[str, object]
    """merged over DeepSpeed's zero_optimization; ranks only"""
    trust_remote_code: bool = False
    """see model.trust_remote_code"""


class TrainablePolicy(Scorer, Protocol):
    """What differs between a plain torch model and a ZeRO-3 rank. With ZeRO-3 all ranks must make the same calls."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of ``loss``, summed (not averaged) over ranks."""
        ...

    def step(self, learning_rate: float) -> StepNorms:
        """Apply the accumulated gradient, or drop it when it is not finite."""
        ...

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The elementwise sum of every rank's ``values``."""
        ...


def score_pieces(scorer: Scorer, pieces: Sequence[Piece[G]], temperature: float) -> TokenScores:
    """One forward over the pieces' responses, in order. Without pieces it still runs one (see MicroBatch)."""
    bundles = [
        (piece.item.group.prompt.token_ids, [piece.item.group.responses[k].token_ids for k in piece.responses])
        for piece in pieces
    ]
    return score_bundles(scorer, bundles, temperature)


def log_ratios_to_engine(
    policy: Scorer, micro_batches: Sequence[MicroBatch[ScoredGroup]], objective: Objective
) -> list[AnchorPiece]:
    """The anchor of each piece's responses: the current policy against the engine's own log-probs."""
    found = []
    for micro_batch in micro_batches:
        pieces = micro_batch.pieces
        with torch.no_grad():
            scores = score_pieces(policy, pieces, objective.sampling_temperature)
            if not pieces:
                continue
            delta = scores.logprobs - _engine_logprobs(pieces, scores)
            log_ratio = response_log_ratio(delta, scores.mask, objective.length_norm)
            means = (response_log_ratio(values, scores.mask, "mean") for values in (delta.abs(), k3(delta)))
            columns = torch.stack([log_ratio, *means]).float().cpu()
        for piece, part in zip(pieces, _by_piece(columns.T, pieces), strict=True):
            found.append(AnchorPiece(piece.item.group.key, piece.responses, AnchorGroup(*part.T.numpy())))
    return found


def run_updates(
    policy: TrainablePolicy,
    updates: Sequence[Update],
    rank: int,
    objective: Objective,
    learning_rate: float,
    reference: Scorer | None = None,
) -> list[UpdateReport]:
    """All updates of a step on this rank's share, in order. All ranks must call this at the same time.

    Anchor and targets stay those of the step for all its updates. An update whose gradient is not finite is dropped by
    ``policy.step`` on all ranks; its report says where the first such number stood.
    """
    temperature = objective.sampling_temperature
    forwards = 0
    before: dict[tuple[int, int], Tensor] = {}
    references: dict[tuple[int, int], Tensor] = {}
    with torch.no_grad():
        for number, update in enumerate(updates):
            for position, micro_batch in enumerate(update.shares[rank]):
                if number and (objective.clip_around_anchor or not objective.behaviour_from_engine):
                    before[number, position] = score_pieces(policy, micro_batch.pieces, temperature).logprobs
                    forwards += 1
                if reference is not None:
                    references[number, position] = score_pieces(reference, micro_batch.pieces, temperature).logprobs
    reports = []
    for number, update in enumerate(updates):
        known, extra = _split_log_ratios(policy, update, number, rank, objective, before)
        forwards += extra
        groups: list[ProjectedGroup] = []
        not_finite: list[NotFinite] = []
        padding = []
        for position, micro_batch in enumerate(update.shares[rank]):
            scores = score_pieces(policy, micro_batch.pieces, temperature)
            forwards += 1
            padding.append(scores.padding)
            if not micro_batch.pieces:
                policy.backward(scores.logprobs.sum() * 0.0)
                continue
            at = (number, position)
            loss, projected, first = _micro_batch_loss(
                scores, micro_batch.pieces, before.get(at), references.get(at), known, number, objective
            )
            policy.backward(loss / update.num_prompts)
            groups += projected
            not_finite += first
        norms = policy.step(learning_rate)
        if not norms.applied and groups and not not_finite:
            largest = max(groups, key=lambda group: float(np.abs(group.surrogate).max()))
            k = largest.responses[int(np.abs(largest.surrogate).argmax())]
            not_finite = [NotFinite("gradient", largest.prompt_id, largest.attempt, k, None)]
        reports.append(UpdateReport(tuple(groups), norms, forwards, float(np.mean(padding)), tuple(not_finite)))
        forwards = 0
    return reports


def _split_log_ratios(
    policy: TrainablePolicy,
    update: Update,
    number: int,
    rank: int,
    objective: Objective,
    before: Mapping[tuple[int, int], Tensor],
) -> tuple[dict[Key, Tensor], int]:
    """Raw log-ratios [K] of the groups that are split over micro-batches or ranks, and the forwards it took.

    At the first update the policy is still the anchor, so they are s_t. Later each rank scores its pieces, and the sum
    over ranks puts the groups together. Every rank runs as many forwards as the one with the most pieces.
    """
    split = {
        piece.item.group.key: piece.item
        for share in update.shares
        for micro_batch in share
        for piece in micro_batch.pieces
        if not piece.is_whole
    }
    if not split:
        return {}, 0
    if number == 0:
        return {key: torch.from_numpy(np.array(target.anchor.log_ratio)) for key, target in split.items()}, 0
    offsets = dict(zip(split, np.cumsum([0, *(len(t.anchor) for t in split.values())]), strict=False))
    values = torch.zeros(sum(len(target.anchor) for target in split.values()), dtype=torch.float64)
    mine = [position for position, micro_batch in enumerate(update.shares[rank]) if micro_batch.is_split]
    passes = max(sum(micro_batch.is_split for micro_batch in share) for share in update.shares)
    with torch.no_grad():
        for turn in range(passes):
            position = mine[turn] if turn < len(mine) else -1
            pieces = update.shares[rank][position].pieces if turn < len(mine) else ()
            scores = score_pieces(policy, pieces, objective.sampling_temperature)
            if not pieces:
                continue
            if objective.behaviour_from_engine:
                delta = scores.logprobs - _engine_logprobs(pieces, scores)
            else:
                delta = scores.logprobs - _recomputed(scores, before.get((number, position)))
            log_ratio = response_log_ratio(delta, scores.mask, objective.length_norm)
            for piece, part in zip(pieces, _by_piece(log_ratio, pieces), strict=True):
                if not piece.is_whole:
                    values[[int(offsets[piece.item.group.key]) + k for k in piece.responses]] = part.double().cpu()
    values = policy.sum_over_ranks(values)
    sizes = [len(target.anchor) for target in split.values()]
    return dict(zip(split, values.split(sizes), strict=True)), passes


def _micro_batch_loss(
    scores: TokenScores,
    pieces: Sequence[Piece[TargetGroup]],
    cached: Tensor | None,
    reference: Tensor | None,
    known: Mapping[Key, Tensor],
    update: int,
    objective: Objective,
) -> tuple[Tensor, list[ProjectedGroup], list[NotFinite]]:
    """Sum over the micro-batch's responses of sg(c_k) A(clip(delta_k)), what telemetry wants of each piece, and the
    first number that is not finite.

    Around pi_t the clip sees log pi_theta - log pi_t: it bounds what this step does to a token. Around pi_b, tokens
    that have left the band since they were sampled would have no gradient any more, in either direction. (The proximal
    policy apart from the behaviour: Hilton et al., "Batch size-invariance for policy optimization", 2022.)

    Around pi_b, of a tempered group the clip sees delta minus a constant of the response, such that A over its tokens
    gives the log-ratio that stands in the simplex. So the band is where the coefficient is: around the mixture that the
    group counts as sampled from; a response whose delta is outside of the band already at pi_t would have a coefficient
    and no gradient, and tempering would mend nothing. The mixture's own token log-ratios would centre each token; the
    anchor keeps one number a response, so what varies inside of it stays in delta. Inside of the band the constant does
    not change the gradient of ``clamp``, ``one_sided`` and ``none``; ``ppo_ratio`` weights by the ratio to the mixture.
    """
    engine = _engine_logprobs(pieces, scores)
    behaviour = engine if objective.behaviour_from_engine else _recomputed(scores, cached)
    delta = scores.logprobs - behaviour
    mask = scores.mask
    with torch.no_grad():
        log_ratio = response_log_ratio(delta, mask, objective.length_norm)
        loss_P, coefficient_N = _coefficients(pieces, log_ratio, known, objective.divergence)
    if objective.clip_around_anchor:
        clipped = scores.logprobs - _recomputed(scores, cached)
    else:
        clipped = delta - _token_offsets(pieces, mask, objective.length_norm).to(delta)
    token_loss = clipped_token_loss(
        objective.token_clip, clipped, coefficient_N, low=objective.clip_low, high=objective.clip_high
    )
    if objective.importance_cap is not None and not objective.behaviour_from_engine:
        token_loss = token_loss * truncated_importance(behaviour - engine, objective.importance_cap)
    response_loss = response_log_ratio(token_loss, mask, objective.length_norm)
    total = response_loss.sum()
    penalty = torch.zeros_like(log_ratio)
    if reference is not None:
        penalty = response_log_ratio(k3(reference - scores.logprobs), mask, "mean")
        sizes = torch.tensor([len(p.item.group.responses) for p in pieces for _ in p.responses], device=penalty.device)
        total = total + objective.reference_kl * (penalty / sizes).sum()
    with torch.no_grad():
        low, high = math.log1p(-objective.clip_low), math.log1p(objective.clip_high)
        outside = ((clipped < low) | (clipped > high)).to(delta.dtype)
        mismatch = engine - behaviour
        per_token = (scores.entropy, outside, mismatch, mismatch.abs(), k3(-mismatch))
        means = (response_log_ratio(values, mask, "mean") for values in per_token)
        columns = torch.stack([log_ratio, response_loss, coefficient_N, *means, penalty]).float().cpu()
        first = _first_not_finite(pieces, (("log-prob", scores.logprobs), ("loss", token_loss)))
    losses = iter(loss_P.tolist())
    projected = []
    for piece, part in zip(pieces, _by_piece(columns.T, pieces), strict=True):
        by_name = dict(zip(ProjectedGroup.ARRAYS, part.T.numpy(), strict=True))
        (prompt_id, attempt), responses = piece.item.group.key, piece.responses
        projected.append(
            ProjectedGroup(
                prompt_id=prompt_id, attempt=attempt, update=update, responses=responses, loss=next(losses), **by_name
            )
        )
    return total, projected, first


def k3(log_ratio: Tensor) -> Tensor:
    """Per token, exp(x) - x - 1 with x = log q - log p and the token from p: an estimate of KL(p || q) that is never
    negative (Schulman, "Approximating KL divergence", 2020).
    """
    return torch.expm1(log_ratio) - log_ratio


def _coefficients(
    pieces: Sequence[Piece[TargetGroup]], log_ratio: Tensor, known: Mapping[Key, Tensor], divergence: str
) -> tuple[Tensor, Tensor]:
    """Divergence of each piece's whole group [P] and coefficient of each response here [N], in fp64. ``log_ratio`` [N]
    and ``known`` are to pi_b; what stands in the simplex is the log-ratio to the mixture of a tempered group.

    A group of one response is its own virtual group (C.2): the target builder stored log sigmoid((R - b)/tau), and
    c = 1/2 - sigmoid((R - b)/tau); its divergence is that of the two Bernoulli distributions.
    """
    sizes = [len(piece.item.log_target) for piece in pieces]
    width = max(max(sizes), 2)
    mask = torch.zeros(len(pieces), width, dtype=torch.bool)
    ratio_PK = torch.zeros(len(pieces), width, dtype=torch.float64)
    target_PK = torch.zeros_like(ratio_PK)
    for row, (piece, part) in enumerate(zip(pieces, _by_piece(log_ratio.double().cpu(), pieces), strict=True)):
        log_target = torch.from_numpy(np.array(piece.item.log_target, dtype=np.float64))
        size = sizes[row]
        if size > 1:
            ratio_PK[row, :size] = part if piece.is_whole else known[piece.item.group.key]
            ratio_PK[row, :size] -= torch.from_numpy(piece.item.offset)
        else:
            target_PK[row, 1] = torch.log1p(-log_target.exp().clamp(max=1 - 1e-7))[0]
        target_PK[row, :size] = log_target
        mask[row, : max(size, 2)] = True
    projection = project(divergence, ratio_PK, target_PK, mask=mask)
    picked = [projection.coefficient[row, list(piece.responses)] for row, piece in enumerate(pieces)]
    return projection.loss, torch.cat(picked).to(log_ratio)


def _token_offsets(pieces: Sequence[Piece[TargetGroup]], mask: Tensor, length_norm: str) -> Tensor:
    """[N, 1] what each token of a response is shifted by so that their mean (or sum) is shifted by the offset; fp64."""
    offsets = torch.from_numpy(np.concatenate([piece.item.offset[list(piece.responses)] for piece in pieces]))
    tokens = mask.sum(-1).cpu() if length_norm == "sum" else 1.0
    return (offsets / tokens)[:, None]


def _recomputed(scores: TokenScores, cached: Tensor | None) -> Tensor:
    """[N, T] log-probs of the policy before the step's first update; at that update it is the policy itself."""
    return scores.logprobs.detach() if cached is None else cached


def _engine_logprobs(pieces: Sequence[Piece[G]], scores: TokenScores) -> Tensor:
    """[N, T] log-probs the engine reported, 0 where padded."""
    rows = [piece.item.group.responses[k].behaviour_logprobs for piece in pieces for k in piece.responses]
    padded = np.zeros(tuple(scores.mask.shape), dtype=np.float32)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return torch.from_numpy(padded).to(scores.logprobs)


def _first_not_finite(pieces: Sequence[Piece[TargetGroup]], named: Sequence[tuple[str, Tensor]]) -> list[NotFinite]:
    for what, values in named:
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            row, token = (int(number) for number in bad[0])
            piece, k = [(piece, k) for piece in pieces for k in piece.responses][row]
            return [NotFinite(what, *piece.item.group.key, k, token)]
    return []


def _by_piece(values: Tensor, pieces: Sequence[Piece[G]]) -> Sequence[Tensor]:
    return values.split([len(piece.responses) for piece in pieces])
