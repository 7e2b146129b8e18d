"""What the ranks saw of a step's groups, put together again: a split group is whole, and in the step's order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lpo_ray.records import (
    Anchor,
    AnchorGroup,
    AnchorPiece,
    FloatArray,
    Key,
    ProjectedGroup,
    ScoredGroup,
    StepReport,
    UpdateReport,
)


def merge_log_ratios(groups: Sequence[ScoredGroup], found: Sequence[AnchorPiece]) -> Anchor:
    """The anchor of each group, in the groups' order, from all pieces of all ranks."""
    columns = {scored.group.key: np.zeros((3, len(scored.rewards)), dtype=np.float32) for scored in groups}
    for piece in found:
        anchor = piece.anchor
        columns[piece.key][:, list(piece.responses)] = (anchor.log_ratio, anchor.drift, anchor.mismatch_kl)
    return tuple(AnchorGroup(*columns[scored.group.key]) for scored in groups)


def merge_reports(by_rank: Sequence[Sequence[UpdateReport]]) -> StepReport:
    """The ranks' reports as one: groups whole again and in prompt order, numbers of the whole update."""
    merged = []
    for reports in zip(*by_rank, strict=True):
        pieces: dict[Key, list[ProjectedGroup]] = {}
        for group in (group for report in reports for group in report.groups):
            pieces.setdefault(group.key, []).append(group)
        merged.append(
            UpdateReport(
                groups=tuple(_whole(pieces[key]) for key in sorted(pieces)),
                norms=reports[0].norms,
                forwards=reports[0].forwards,
                padding=float(np.mean([report.padding for report in reports])),
                not_finite=tuple(found for report in reports for found in report.not_finite),
            )
        )
    return StepReport(tuple(merged))


def _whole(pieces: Sequence[ProjectedGroup]) -> ProjectedGroup:
    if len(pieces) == 1:
        return pieces[0]
    responses = [k for piece in pieces for k in piece.responses]
    order = np.argsort(responses)
    first = pieces[0]

    def joined(name: str) -> FloatArray:
        return np.concatenate([getattr(piece, name) for piece in pieces])[order]

    return ProjectedGroup(
        prompt_id=first.prompt_id,
        attempt=first.attempt,
        update=first.update,
        responses=tuple(sorted(responses)),
        loss=first.loss,
        **{name: joined(name) for name in ProjectedGroup.ARRAYS},
    )
