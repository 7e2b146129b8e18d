"""Responses of several turns for tests: random ones, cut into segments wherever one likes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lpo_ray.records import BoolArray, Conversation, IntArray, Prompt, PromptGroup, Response, Segment, TargetGroup
from lpo_ray.verdict import Verdict

AUTHORS = ("tool", "user")


def make_conversation(
    rng: np.random.Generator, turns: Sequence[int], replies: Sequence[int], vocabulary: int = 50
) -> tuple[Response, Conversation]:
    """A response of ``turns`` sampled tokens each, behind all but the last of which stand ``replies`` tokens of an
    environment: one segment. Returns the conversation, too.
    """
    parts, masks = [], []
    for number, turn in enumerate(turns):
        parts.append(rng.integers(0, vocabulary, turn))
        masks.append(np.ones(turn, dtype=np.bool_))
        if number + 1 < len(turns):
            parts.append(rng.integers(0, vocabulary, replies[number]))
            masks.append(np.zeros(replies[number], dtype=np.bool_))
    segment = Segment(np.concatenate(parts), np.concatenate(masks))
    conversation = Conversation(
        (segment,),
        tuple(turns),
        tuple(AUTHORS[number % 2] for number in range(len(turns) - 1)),
        Verdict.scored(0.1, "a \ud800 detail"),
        "turns",
        0.25,
    )
    return response_of(rng, conversation), conversation


def response_of(rng: np.random.Generator, conversation: Conversation) -> Response:
    size = sum(conversation.turns)
    return Response(
        conversation.token_ids,
        rng.normal(-2, 0.5, size).astype(np.float32),
        np.repeat(np.arange(len(conversation.turns)), conversation.turns),
        "stop",
        conversation,
    )


def cut(conversation: Conversation, prompt: IntArray, places: Sequence[int]) -> Conversation:
    """The same conversation with further segments, each of which begins at one of ``places``, counted over the tokens
    behind the prompt. A place behind which nothing was sampled, or before which, makes none.
    """
    (segment,) = conversation.segments
    made: list[Segment] = []
    start = 0
    for end in [*sorted(set(places)), len(segment.token_ids)]:
        mask = segment.sampled[start:end]
        if not mask.any():
            continue
        last = start + int(mask.nonzero()[0][-1]) + 1
        context = None if not made else np.concatenate([prompt, segment.token_ids[:start]])
        began = "" if not made else "rewritten"
        made.append(Segment(segment.token_ids[start:last], segment.sampled[start:last], context, began))
        start = end
    return replace(conversation, segments=tuple(made))


def with_conversations(target: TargetGroup, conversations: Sequence[Conversation | None]) -> TargetGroup:
    """The target with other conversations of the same sampled tokens."""
    rows = zip(target.group.responses, conversations, strict=True)
    responses = tuple(replace(response, conversation=conversation) for response, conversation in rows)
    return with_group(target, replace(target.group, responses=responses))


def with_group(target: TargetGroup, group: PromptGroup) -> TargetGroup:
    return replace(target, scored=replace(target.scored, group=group))


def mask_of(*runs: int) -> BoolArray:
    """Runs of tokens that were not sampled, then that were, and so on."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def mixed_group(number: int = 0, prompt_length: int = 4, vocabulary: int = 50) -> PromptGroup:
    """A single answer, a conversation of one segment, one of three, and one whose context does not begin with the
    prompt.
    """
    rng = np.random.default_rng(number)
    prompt = Prompt(
        f"train-{number:08d}", rng.integers(0, vocabulary, prompt_length), '{"numbers": [1, 2, 3], "target": 6}',
        "countdown",
    )  # fmt: skip
    single = Response(rng.integers(0, vocabulary, 3), np.full(3, -1, np.float32), np.zeros(3, np.int64), "stop")
    one, _ = make_conversation(rng, (2, 3, 1), (4, 2), vocabulary)
    _, conversation = make_conversation(rng, (3, 2, 4), (1, 5), vocabulary)
    three = response_of(rng, cut(conversation, prompt.token_ids, (4, 11)))
    apart = Segment(rng.integers(0, vocabulary, 4), mask_of(1, 3), rng.integers(0, vocabulary, 6), "compaction")
    begun = Segment(rng.integers(0, vocabulary, 2), mask_of(0, 2))
    other = response_of(rng, Conversation((begun, apart), (2, 3), ("user", "tool"), None, "tokens", 1.5, 1, 2, 7))
    return PromptGroup(prompt, 0, (single, one, three, replace(other, finish_reason="length")))
