"""Rewards: the cases that a verifier is asked about a group, and the group's rewards from its verdicts."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lpo_ray.errors import GroupLost, Unscored
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import FloatArray, IntArray, PromptGroup, Response
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.case import Case, Sampled
from lpo_ray.verifiers.calling.overlong import Overlong
from lpo_ray.verifiers.calling.weighted_sum import terms
from lpo_ray.verifiers.sandbox.limits import Limits

LONGEST_DETAIL = 500
"""characters of a verdict's detail that are kept"""


class Scores(NamedTuple):
    """Scores of a group's K responses, as they travel back from the verifier service: the fields of ScoredGroup.

    Example: ``Scores(np.array([1.0, 0.0]), ("equal", "3 is not 4"), np.array([-0.5, 0.0]))``
    """

    rewards: FloatArray
    """[K] of the verifier"""
    details: tuple[str, ...]
    """[K] what it said beside each"""
    shaping: FloatArray
    """[K] what training adds to the rewards for the responses' lengths"""


def cases_of(group: PromptGroup, tokenizer: Tokenizer, sandbox: Limits) -> list[Case]:
    """Make the cases of a group: its K responses as text. Functions and services from outside also get them as other
    systems would decode them.
    """
    prompt, is_foreign = group.prompt, any(":" in term.name for term in terms(group.prompt.verifier))
    text = tokenizer.decode(prompt.token_ids)
    return [
        Case(
            text,
            tokenizer.decode(response.token_ids),
            prompt.answer,
            prompt.row,
            response.finish_reason == "length",
            sandbox,
            prompt.answer if prompt.raw_answer is None else prompt.raw_answer,
            _sampled(prompt.token_ids, response, tokenizer) if is_foreign else None,
        )
        for response in group.responses
    ]


def _sampled(prompt: IntArray, response: Response, tokenizer: Tokenizer) -> Sampled:
    return Sampled(
        array("q", response.token_ids.tolist()),
        tokenizer.show(prompt),
        tokenizer.decode_plain(response.token_ids),
        tokenizer.show(np.concatenate([prompt, response.token_ids])),
        int(response.versions.max()),
    )


def scores_of(group: PromptGroup, verdicts: Sequence[Verdict], overlong: Overlong) -> Scores:
    """Turn the verdicts on a group into its scores. Raises GroupLost when a response has no reward: Unscored when that
    is its own affair or its row's, and not the verifier's.
    """
    for number, verdict in enumerate(verdicts):
        if verdict.reward is None:
            lost = GroupLost if verdict.lack == "failed" else Unscored
            reason = f"response {number} stayed unscored: {verdict.detail}"
            raise lost(group.prompt.prompt_id, group.attempt, reason)
    return Scores(
        np.array([verdict.reward for verdict in verdicts], dtype=np.float32),
        tuple(verdict.detail[:LONGEST_DETAIL] for verdict in verdicts),
        np.array([overlong(len(response.token_ids)) for response in group.responses], dtype=np.float32),
    )
