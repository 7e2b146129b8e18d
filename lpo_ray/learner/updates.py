"""The updates of a step on one rank: which forwards are run, in which order, and what is accumulated from them.

How many forwards. A group that is whole in its micro-batch needs none but its own: the coefficients come from the
forward that is differentiated. A group that is split needs its K log-ratios first. At the first update they are the
anchor's, which is known. At later ones a pass without gradient over the micro-batches that hold pieces collects them
from all ranks. With ``behaviour_from_engine=False`` the behaviour is the policy before the step's first update. That
update's own forward *is* it (delta = 0); later updates take one pass each without gradient before the weights change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lpo_ray.learner.loss import (
    behaviour_logprobs,
    by_piece,
    engine_logprobs,
    first_not_finite,
    k3,
    loss_report,
    micro_batch_loss,
)
from lpo_ray.learner.settings import Objective
from lpo_ray.objective import response_log_ratio
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
    Update,
    UpdateReport,
)

Position = tuple[int, int]
"""number of an update, and of a micro-batch in this rank's share of it"""


class TrainablePolicy(Scorer, Protocol):
    """A policy being trained: a plain torch model or a ZeRO-3 rank. With ZeRO-3 all ranks must make the same calls."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of ``loss``, summed (not averaged) over ranks."""
        ...

    def step(self, learning_rate: float) -> StepNorms:
        """Apply the accumulated gradient, or drop it when it is NaN or Inf."""
        ...

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Add up every rank's ``values``, element by element."""
        ...


def score_pieces(scorer: Scorer, pieces: Sequence[Piece[G]], temperature: float) -> TokenScores:
    """Run one forward over the pieces' responses, in order. Without pieces it still runs one, over one token."""
    bundles = [
        (piece.item.group.prompt.token_ids, [piece.item.group.responses[k].segments for k in piece.responses])
        for piece in pieces
    ]
    return score_bundles(scorer, bundles, temperature)


def log_ratios_to_engine(
    policy: Scorer, micro_batches: Sequence[MicroBatch[ScoredGroup]], objective: Objective
) -> list[AnchorPiece]:
    """Measure the anchor of each piece's responses: the current policy against the engine's log-probs."""
    found = []
    for micro_batch in micro_batches:
        pieces = micro_batch.pieces
        with torch.no_grad():
            scores = score_pieces(policy, pieces, objective.sampling_temperature)
            if not pieces:
                continue
            delta = scores.logprobs - engine_logprobs(pieces, scores)
            log_ratio = response_log_ratio(delta, scores.mask, objective.length_norm)
            means = (response_log_ratio(values, scores.mask, "mean") for values in (delta.abs(), k3(delta)))
            columns = torch.stack([log_ratio, *means]).float().cpu()
        for piece, part in zip(pieces, by_piece(columns.T, pieces), strict=True):
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
    """Run all updates of a step on this rank's share, in order. All ranks must call this at the same time.

    Anchor and targets stay those of the step for all its updates. An update whose gradient is NaN or Inf is dropped by
    ``TrainablePolicy.step`` on all ranks; its report says where the first such number stood.
    """
    at_start, references = _fixed_logprobs(policy, updates, rank, objective, reference)
    forwards = len(at_start)
    reports = []
    for number, update in enumerate(updates):
        split, extra = _split_log_ratios(policy, update, number, rank, objective, at_start)
        forwards += extra
        groups: list[ProjectedGroup] = []
        not_finite: list[NotFinite] = []
        padding = []
        for index, micro_batch in enumerate(update.shares[rank]):
            pieces, position = micro_batch.pieces, (number, index)
            scores = score_pieces(policy, pieces, objective.sampling_temperature)
            forwards += 1
            padding.append(scores.padding)
            if not pieces:
                policy.backward(scores.logprobs.sum() * 0.0)
                continue
            loss = micro_batch_loss(
                scores, pieces, objective,
                split=split, at_start=at_start.get(position), reference=references.get(position),
            )  # fmt: skip
            groups += loss_report(loss, scores, pieces, number, objective)
            if found := first_not_finite(loss, scores, pieces):
                not_finite.append(found)
            policy.backward(loss.total / update.num_prompts)
        norms = policy.step(learning_rate)
        if not norms.applied and groups and not not_finite:
            not_finite.append(_heaviest(groups))
        reports.append(UpdateReport(tuple(groups), norms, forwards, float(np.mean(padding)), tuple(not_finite)))
        forwards = 0
    return reports


def _fixed_logprobs(
    policy: Scorer, updates: Sequence[Update], rank: int, objective: Objective, reference: Scorer | None
) -> tuple[dict[Position, Tensor], dict[Position, Tensor]]:
    """Score each micro-batch before the weights change: by the policy, where a later update needs that, and by the
    reference, if there is one. Each forward adds one entry.
    """
    temperature = objective.sampling_temperature
    at_start: dict[Position, Tensor] = {}
    references: dict[Position, Tensor] = {}
    with torch.no_grad():
        for number, update in enumerate(updates):
            for index, micro_batch in enumerate(update.shares[rank]):
                if number and (objective.clip_around_anchor or not objective.behaviour_from_engine):
                    at_start[number, index] = score_pieces(policy, micro_batch.pieces, temperature).logprobs
                if reference is not None:
                    references[number, index] = score_pieces(reference, micro_batch.pieces, temperature).logprobs
    return at_start, references


def _heaviest(groups: Sequence[ProjectedGroup]) -> NotFinite:
    """Name the response that weighs most in an update whose gradient, and nothing before it, is NaN or Inf."""
    largest = max(groups, key=lambda group: float(np.abs(group.surrogate).max()))
    k = largest.responses[int(np.abs(largest.surrogate).argmax())]
    return NotFinite("gradient", largest.prompt_id, largest.attempt, k, None)


def _split_log_ratios(
    policy: TrainablePolicy,
    update: Update,
    number: int,
    rank: int,
    objective: Objective,
    at_start: Mapping[Position, Tensor],
) -> tuple[dict[Key, Tensor], int]:
    """Collect raw log-ratios [K] of the groups that are split over micro-batches or ranks; and count the forwards.

    At the first update the policy is still the anchor, so they are s_t. Later each rank scores its pieces, and the sum
    over ranks puts the groups together. Every rank runs as many forwards as the one with the most pieces.
    """
    split = update.split
    if not split:
        return {}, 0
    if number == 0:
        return {key: torch.from_numpy(np.array(log_ratio)) for key, log_ratio in split.items()}, 0
    sizes = [len(log_ratio) for log_ratio in split.values()]
    offsets = dict(zip(split, np.cumsum([0, *sizes]), strict=False))
    values = torch.zeros(sum(sizes), dtype=torch.float64)
    mine = [index for index, micro_batch in enumerate(update.shares[rank]) if micro_batch.is_split]
    passes = update.split_passes
    with torch.no_grad():
        for turn in range(passes):
            index = mine[turn] if turn < len(mine) else -1
            pieces = update.shares[rank][index].pieces if turn < len(mine) else ()
            scores = score_pieces(policy, pieces, objective.sampling_temperature)
            if not pieces:
                continue
            behaviour = behaviour_logprobs(pieces, scores, at_start.get((number, index)), objective)
            delta = scores.logprobs - behaviour
            log_ratio = response_log_ratio(delta, scores.mask, objective.length_norm)
            for piece, part in zip(pieces, by_piece(log_ratio, pieces), strict=True):
                if not piece.is_whole:
                    values[[int(offsets[piece.item.group.key]) + k for k in piece.responses]] = part.double().cpu()
    values = policy.sum_over_ranks(values)
    return dict(zip(split, values.split(sizes), strict=True)), passes
