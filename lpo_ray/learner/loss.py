"""The loss of a micro-batch, the same in one process and on each ZeRO-3 rank.

Legend: N responses of a micro-batch, P its groups, K responses of a group, T tokens.

For each update the loss is (App. D.3)
``1/B sum_x sum_k sg(c_k) A_i(clip(delta_k,i))``. B is the global number of prompts; A is the mean (or sum) over the
response's tokens; delta is the token log-ratio to the behaviour. c_k is the projection's coefficient, computed in fp64
from the *raw* fp32 log-ratios of all K responses.

A tempered group counts as sampled from the geometric mixture pi_b^lambda pi_t^(1 - lambda). Its log-ratios are those to
pi_b minus (1 - lambda) s_t, in the simplex and in the clip.

Read ``micro_batch_loss`` first. ``loss_report`` makes telemetry's columns of what it returns, and ``first_not_finite``
finds the token at which a NaN or Inf came up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lpo_ray.learner.settings import Objective
from lpo_ray.objective import clipped_token_loss, project, response_log_ratio, truncated_importance
from lpo_ray.policy.scoring import TokenScores
from lpo_ray.records import G, Key, NotFinite, Piece, ProjectedGroup, TargetGroup


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatchLoss:
    """The loss of one micro-batch and what it was computed from. Only ``total`` is meant to be differentiated."""

    total: Tensor
    """[] sum over the responses; the update divides it by the global number of prompts"""
    divergence: Tensor
    """[P] fp64, divergence of each piece's whole group"""
    coefficient: Tensor
    """[N] c_k"""
    log_ratio: Tensor
    """[N] s_theta, to pi_b itself"""
    response_loss: Tensor
    """[N] what each response adds to ``total``, without the penalty"""
    penalty: Tensor
    """[N] k3 estimate of KL(policy || reference), mean over tokens; 0 without a reference"""
    token_loss: Tensor
    """[N, T] what ``response_loss`` is the mean (or sum) of"""
    clipped: Tensor
    """[N, T] the token log-ratio that the clip sees"""
    mismatch: Tensor
    """[N, T] log pi_engine - log pi_b"""


def micro_batch_loss(
    scores: TokenScores,
    pieces: Sequence[Piece[TargetGroup]],
    objective: Objective,
    *,
    split: Mapping[Key, Tensor],
    at_start: Tensor | None,
    reference: Tensor | None,
) -> MicroBatchLoss:
    """Compute the sum over the micro-batch's responses of sg(c_k) A(clip(delta_k)), plus the penalty.

    ``split``: raw log-ratios [K] of the groups that have responses elsewhere. ``at_start``: [N, T] log-probs of the
    policy before the step's first update; None at that update. ``reference``: [N, T] log-probs of the reference.
    """
    mask = scores.mask
    behaviour = behaviour_logprobs(pieces, scores, at_start, objective)
    engine = behaviour if objective.behaviour_from_engine else engine_logprobs(pieces, scores)
    delta = scores.logprobs - behaviour
    with torch.no_grad():
        log_ratio = response_log_ratio(delta, mask, objective.length_norm)
        divergence, coefficient = coefficients(pieces, log_ratio, split, objective.divergence)
    if objective.clip_around_anchor:
        clipped = scores.logprobs - _at_start(scores, at_start)
    else:
        clipped = delta - _token_offsets(pieces, mask, objective.length_norm).to(delta)
    token_loss = token_losses(clipped, coefficient, behaviour, engine, objective)
    response_loss = response_log_ratio(token_loss, mask, objective.length_norm)
    total = response_loss.sum()
    penalty = torch.zeros_like(log_ratio)
    if reference is not None:
        penalty = response_log_ratio(k3(reference - scores.logprobs), mask, "mean")
        sizes = torch.tensor([len(p.item.group.responses) for p in pieces for _ in p.responses], device=penalty.device)
        total = total + objective.reference_kl * (penalty / sizes).sum()
    return MicroBatchLoss(
        total=total,
        divergence=divergence,
        coefficient=coefficient,
        log_ratio=log_ratio,
        response_loss=response_loss,
        penalty=penalty,
        token_loss=token_loss,
        clipped=clipped,
        mismatch=engine - behaviour,
    )


def token_losses(
    clipped: Tensor, coefficient: Tensor, behaviour: Tensor, engine: Tensor, objective: Objective
) -> Tensor:
    """[N, T] loss of each token: the clip of its log-ratio times its response's coefficient, importance-weighted.

    Around pi_t the clip sees log pi_theta - log pi_t: it bounds what this step does to a token. Around pi_b, a token
    that has left the band since it was sampled has no gradient any more, in either direction. (Keeping the proximal
    policy apart from the behaviour: Hilton et al., "Batch size-invariance for policy optimization", 2022.)

    Around pi_b, the clip of a tempered group sees delta minus a constant of the response. The constant is such that A
    over the tokens gives the log-ratio that stands in the simplex. So the band lies around the mixture that the group
    counts as sampled from. Otherwise a response whose delta is outside of the band already at pi_t would have a
    coefficient and no gradient, and tempering would not help. The mixture's own token log-ratios would centre each
    token; the anchor keeps one number a response, so what varies inside of it stays in delta. Inside of the band the
    constant does not change the gradient of ``clamp``, ``one_sided`` and ``none``; ``ppo_ratio`` weights by the ratio
    to the mixture.
    """
    loss = clipped_token_loss(
        objective.token_clip, clipped, coefficient, low=objective.clip_low, high=objective.clip_high
    )
    if objective.importance_cap is not None and not objective.behaviour_from_engine:
        loss = loss * truncated_importance(behaviour - engine, objective.importance_cap)
    return loss


def coefficients(
    pieces: Sequence[Piece[TargetGroup]], log_ratio: Tensor, split: Mapping[Key, Tensor], divergence: str
) -> tuple[Tensor, Tensor]:
    """Divergence of each piece's whole group [P] and coefficient of each response here [N], in fp64.

    ``log_ratio`` [N] and ``split`` are to pi_b; what stands in the simplex is the log-ratio to the mixture of a
    tempered group.

    A group of one response is its own virtual group (App. C.2). The target builder stored log sigmoid((R - b)/tau), so
    forward KL gives c = 1/2 - sigmoid((R - b)/tau). Its divergence is that of the two Bernoulli distributions.
    """
    sizes = [len(piece.item.log_target) for piece in pieces]
    width = max(max(sizes), 2)
    mask = torch.zeros(len(pieces), width, dtype=torch.bool)
    ratio_PK = torch.zeros(len(pieces), width, dtype=torch.float64)
    target_PK = torch.zeros_like(ratio_PK)
    for row, (piece, part) in enumerate(zip(pieces, by_piece(log_ratio.double().cpu(), pieces), strict=True)):
        log_target = torch.from_numpy(np.array(piece.item.log_target, dtype=np.float64))
        size = sizes[row]
        if size > 1:
            ratio_PK[row, :size] = part if piece.is_whole else split[piece.item.group.key]
            ratio_PK[row, :size] -= torch.from_numpy(piece.item.offset)
        else:
            target_PK[row, 1] = torch.log1p(-log_target.exp().clamp(max=1 - 1e-7))[0]
        target_PK[row, :size] = log_target
        mask[row, : max(size, 2)] = True
    projection = project(divergence, ratio_PK, target_PK, mask=mask)
    picked = [projection.coefficient[row, list(piece.responses)] for row, piece in enumerate(pieces)]
    return projection.loss, torch.cat(picked).to(log_ratio)


def behaviour_logprobs(
    pieces: Sequence[Piece[G]], scores: TokenScores, at_start: Tensor | None, objective: Objective
) -> Tensor:
    """[N, T] log-probs of pi_b: what the engine reported, or those of the policy before the step's first update."""
    return engine_logprobs(pieces, scores) if objective.behaviour_from_engine else _at_start(scores, at_start)


def engine_logprobs(pieces: Sequence[Piece[G]], scores: TokenScores) -> Tensor:
    """[N, T] log-probs that the engine reported, 0 where padded."""
    rows = [piece.item.group.responses[k].behaviour_logprobs for piece in pieces for k in piece.responses]
    padded = np.zeros(tuple(scores.mask.shape), dtype=np.float32)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return torch.from_numpy(padded).to(scores.logprobs)


def k3(log_ratio: Tensor) -> Tensor:
    """Estimate KL(p || q) per token as exp(x) - x - 1, with x = log q - log p and the token from p.

    It is never negative (Schulman, "Approximating KL divergence", 2020).
    """
    return torch.expm1(log_ratio) - log_ratio


def by_piece(values: Tensor, pieces: Sequence[Piece[G]]) -> Sequence[Tensor]:
    """Split values of N responses into those of each piece."""
    return values.split([len(piece.responses) for piece in pieces])


@torch.no_grad()
def loss_report(
    loss: MicroBatchLoss, scores: TokenScores, pieces: Sequence[Piece[TargetGroup]], update: int, objective: Objective
) -> list[ProjectedGroup]:
    """Report what telemetry wants to know of each piece at update number ``update``."""
    low, high = math.log1p(-objective.clip_low), math.log1p(objective.clip_high)
    outside = ((loss.clipped < low) | (loss.clipped > high)).to(loss.clipped.dtype)
    per_token = {
        "entropy": scores.entropy,
        "clip_fraction": outside,
        "engine_mismatch": loss.mismatch,
        "engine_drift": loss.mismatch.abs(),
        "engine_kl": k3(-loss.mismatch),
    }
    columns = {
        "log_ratio": loss.log_ratio,
        "surrogate": loss.response_loss,
        "coefficient": loss.coefficient,
        **{name: response_log_ratio(values, scores.mask, "mean") for name, values in per_token.items()},
        "reference_kl": loss.penalty,
    }
    stacked = torch.stack([columns[name] for name in ProjectedGroup.ARRAYS]).float().cpu()
    reports = []
    for piece, part, divergence in zip(pieces, by_piece(stacked.T, pieces), loss.divergence.tolist(), strict=True):
        prompt_id, attempt = piece.item.group.key
        reports.append(
            ProjectedGroup(
                prompt_id=prompt_id,
                attempt=attempt,
                update=update,
                responses=piece.responses,
                loss=divergence,
                **dict(zip(ProjectedGroup.ARRAYS, part.T.numpy(), strict=True)),
            )
        )
    return reports


def first_not_finite(
    loss: MicroBatchLoss, scores: TokenScores, pieces: Sequence[Piece[TargetGroup]]
) -> NotFinite | None:
    """Find the first token whose log-prob, or else loss, is NaN or Inf. None: there is none."""
    for what, values in (("log-prob", scores.logprobs), ("loss", loss.token_loss)):
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            row, token = (int(number) for number in bad[0])
            piece, k = [(piece, k) for piece in pieces for k in piece.responses][row]
            return NotFinite(what, *piece.item.group.key, k, token)
    return None


def _token_offsets(pieces: Sequence[Piece[TargetGroup]], mask: Tensor, length_norm: str) -> Tensor:
    """[N, 1] what each token of a response is shifted by so that their mean (or sum) is shifted by the offset; fp64."""
    offsets = torch.from_numpy(np.concatenate([piece.item.offset[list(piece.responses)] for piece in pieces]))
    tokens = mask.sum(-1).cpu() if length_norm == "sum" else 1.0
    return (offsets / tokens)[:, None]


def _at_start(scores: TokenScores, at_start: Tensor | None) -> Tensor:
    """[N, T] log-probs of the policy before the step's first update; at that update it is the policy itself."""
    return scores.logprobs.detach() if at_start is None else at_start
