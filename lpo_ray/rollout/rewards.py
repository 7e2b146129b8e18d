"""Rewards: the cases that a verifier is asked about a group, and the group's rewards from its verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lpo_ray.errors import GroupLost
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import FloatArray, PromptGroup
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.calling.overlong import Overlong
from lpo_ray.verifiers.sandbox.limits import Limits

LONGEST_DETAIL = 500
"""characters of a verdict's detail that are kept"""


def cases_of(group: PromptGroup, tokenizer: Tokenizer, sandbox: Limits) -> list[Case]:
    """Make the cases of a group: its K responses as text."""
    prompt = tokenizer.decode(group.prompt.token_ids)
    return [
        Case(
            prompt,
            tokenizer.decode(response.token_ids),
            group.prompt.answer,
            group.prompt.row,
            response.finish_reason == "length",
            sandbox,
        )
        for response in group.responses
    ]


def scores_of(
    group: PromptGroup, verdicts: Sequence[Verdict], overlong: Overlong
) -> tuple[FloatArray, tuple[str, ...]]:
    """Compute [K] rewards, less what long responses lose, and the verdicts' details. Raises GroupLost when a response
    has no reward.
    """
    rewards = []
    for number, (verdict, response) in enumerate(zip(verdicts, group.responses, strict=True)):
        if verdict.reward is None:
            raise GroupLost(
                group.prompt.prompt_id, group.attempt, f"response {number} stayed unscored: {verdict.detail}"
            )
        rewards.append(verdict.reward + overlong(len(response.token_ids)))
    return np.asarray(rewards, dtype=np.float32), tuple(verdict.detail[:LONGEST_DETAIL] for verdict in verdicts)
