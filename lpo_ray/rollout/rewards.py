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


def given_verdicts(group: PromptGroup) -> list[Verdict] | None:
    """Return the verdicts that the environments gave of a group's conversations. None: a verifier scores them, all, so
    that one judge says how the group's responses compare.
    """
    verdicts = [None if each.conversation is None else each.conversation.verdict for each in group.responses]
    found = [verdict for verdict in verdicts if verdict is not None]
    return found if len(found) == len(verdicts) else None


def cases_of(group: PromptGroup, tokenizer: Tokenizer, sandbox: Limits) -> list[Case]:
    """Make the cases of a group: its K responses as text, of a conversation what the policy said last, or what its
    agent put out; the row has all of it then, as ``messages``. Functions and services from outside also get them as
    other systems would decode them.
    """
    prompt, is_foreign = group.prompt, any(":" in term.name for term in terms(group.prompt.verifier))
    text = tokenizer.decode(prompt.token_ids)
    return [
        Case(
            text,
            response.said(tokenizer.decode),
            prompt.answer,
            prompt.row if response.conversation is None else {**prompt.row, "messages": _messages(group, k, tokenizer)},
            response.finish_reason == "length",
            sandbox,
            prompt.answer if prompt.raw_answer is None else prompt.raw_answer,
            _sampled(prompt.token_ids, response, tokenizer) if is_foreign else None,
        )
        for k, response in enumerate(group.responses)
    ]


def _sampled(prompt: IntArray, response: Response, tokenizer: Tokenizer) -> Sampled:
    segment = response.segments[-1]
    context = prompt if segment.context_ids is None else segment.context_ids
    return Sampled(
        array("q", response.token_ids.tolist()),
        tokenizer.show(prompt),
        response.said(tokenizer.decode_plain),
        tokenizer.show(np.concatenate([context, segment.token_ids])),
        int(response.versions.max()),
    )


def _messages(group: PromptGroup, k: int, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Write a conversation as messages, by its tokens: the prompt, then turns of the policy, and what stands between
    them without special tokens.
    """
    response = group.responses[k]
    assert response.conversation is not None
    turns, authors = response.conversation.turns, response.conversation.authors
    messages: list[dict[str, str]] = []
    said = 0
    for number, segment in enumerate(response.segments):
        context = group.prompt.token_ids if segment.context_ids is None else segment.context_ids
        author = authors[said - 1] if number else "user"  # of what it begins with: the prompt, or what was written anew
        messages.append({"role": author, "content": tokenizer.decode(context)})
        start = 0
        while start < len(segment.token_ids):
            if segment.sampled[start]:
                end, role, said = start + turns[said], "assistant", said + 1
            else:
                end, role = start + int(segment.sampled[start:].argmax()), authors[said - 1]
            messages.append({"role": role, "content": tokenizer.decode(segment.token_ids[start:end])})
            start = end
    return messages


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
        np.array([overlong(_longest_turn(response)) for response in group.responses], dtype=np.float32),
    )


def _longest_turn(response: Response) -> int:
    """Count the tokens of the turn that came closest to sampling.max_tokens."""
    return len(response.token_ids) if response.conversation is None else max(response.conversation.turns)
