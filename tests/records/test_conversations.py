"""Conversations as records: what they refuse, and that they come back from a process and from the ledger."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.records import Conversation, PromptGroup, Response, ScoredGroup, Segment
from lpo_ray.records.conversations import ConversationShape, put_together
from lpo_ray.records.groups import ELSEWHERE
from lpo_ray.training.ledger_codec import from_bytes, to_bytes
from lpo_ray.verdict import Verdict
from tests.support.builders import make_group
from tests.support.segments import cut, make_conversation, mask_of, mixed_group, response_of


def assert_equal(found: PromptGroup, expected: PromptGroup) -> None:
    np.testing.assert_array_equal(found.prompt.token_ids, expected.prompt.token_ids)
    for ours, theirs in zip(found.responses, expected.responses, strict=True):
        assert ours.finish_reason == theirs.finish_reason
        for name in ("token_ids", "behaviour_logprobs", "versions"):
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert (ours.conversation is None) == (theirs.conversation is None)
        assert ours.turns == theirs.turns
        if ours.conversation is None or theirs.conversation is None:
            continue
        for name in (
            "turns", "authors", "verdict", "ended", "environment_seconds", "moved", "redrawn", "dropped",
            "output",
        ):  # fmt: skip
            assert getattr(ours.conversation, name) == getattr(theirs.conversation, name), name
        for segment, other in zip(ours.segments, theirs.segments, strict=True):
            assert segment.began == other.began
            for name in ("token_ids", "sampled", "context_ids"):
                left, right = getattr(segment, name), getattr(other, name)
                assert (left is None) == (right is None)
                if left is not None:
                    assert left.dtype == right.dtype
                    np.testing.assert_array_equal(left, right)


def test_the_output_of_an_agent_comes_back_and_older_shapes_have_none() -> None:
    group = mixed_group(3)
    responses = tuple(
        response if response.conversation is None
        else replace(response, conversation=replace(response.conversation, output=f"output {k} \ud800"))
        for k, response in enumerate(group.responses)
    )  # fmt: skip
    group = replace(group, responses=responses)
    scored = ScoredGroup(group, np.array([0, 0.5, 1, 0], np.float32))
    assert_equal(from_bytes(to_bytes(scored)).group, group)
    assert_equal(pickle.loads(pickle.dumps(scored)).group, group)
    for size in (6, 9):  # as earlier versions wrote them
        shape = ConversationShape.of_plain([[[None, [0, 1], ""]], [1], [], None, "done", 0.5, 1, 2, 3][:size])
        made, _ = put_together(shape, np.array([7]), np.zeros(0, np.int64))
        assert (made.output, made.environment_seconds, made.dropped) == (None, 0.5, 3 if size == 9 else 0)


@pytest.mark.parametrize("way", ["pickle", "ledger", "pickle, then ledger", "twice"])
def test_a_group_with_conversations_comes_back(way: str) -> None:
    group = mixed_group(3)
    scored = ScoredGroup(group, np.array([0, 0.5, 1, 0], np.float32))
    if way != "ledger":
        scored = pickle.loads(pickle.dumps(scored))
    if way == "twice":
        scored = pickle.loads(pickle.dumps(scored))
    found = from_bytes(to_bytes(scored)) if "ledger" in way else scored
    assert_equal(found.group, group)
    assert found.group.num_bytes >= group.num_tokens * 12


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.lists(st.integers(0, 16), max_size=4)),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 4),
)
def test_any_conversation_comes_back(shapes: list[tuple[list[int], list[int]]], reply: int) -> None:
    """Replies of no tokens among them: a turn may follow a turn."""
    group = make_group(0, [1] * len(shapes))
    rng = np.random.default_rng(0)
    made = []
    for turns, places in shapes:
        _, conversation = make_conversation(rng, turns, [reply] * len(turns))
        made.append(response_of(rng, cut(conversation, group.prompt.token_ids, places)))
    group = replace(group, responses=tuple(made))
    assert_equal(pickle.loads(pickle.dumps(group)), group)
    assert_equal(from_bytes(to_bytes(ScoredGroup(group, np.zeros(len(made), np.float32)))).group, group)


def test_a_conversation_travels_as_a_few_arrays() -> None:
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(mixed_group(0), protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 4  # one more than without conversations: all tokens that were not sampled


def test_a_single_answer_is_in_the_ledger_as_it_was() -> None:
    content = to_bytes(ScoredGroup(make_group(0), np.zeros(2, np.float32)))
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert set(header) == {
        "text", "attempt", "prompt", "lengths", "token_ids", "versions", "logprobs", "finished", "rewards", "shaping",
    }  # fmt: skip


def test_a_learner_gets_the_segments_that_it_scores_and_no_verdict() -> None:
    group = mixed_group(0)
    held = group.for_learner({0, 2})
    assert [response is ELSEWHERE for response in held.responses] == [False, True, False, True]
    conversation = held.responses[2].conversation
    assert conversation is not None
    assert (conversation.verdict, conversation.authors, conversation.ended) == (None, (), "done")
    assert len(conversation.segments) == 3
    assert held.responses[0] is group.responses[0]


def test_what_cannot_be_is_refused() -> None:
    ids = np.arange(3)
    for mask, match in (
        (mask_of(0, 2), "sampled has 2 entries, expected 3"),
        (np.ones(3, np.int64), "dtype int64, expected bool"),
        (mask_of(0, 2, 1), "ends with one that was not sampled"),
    ):
        with pytest.raises(ValueError, match=match):
            Segment(ids, mask)
    with pytest.raises(ValueError, match="a segment of 0 tokens"):
        Segment(ids[:0], mask_of())
    with pytest.raises(ValueError, match="context has no tokens"):
        Segment(ids, mask_of(0, 3), ids[:0])
    segment = Segment(ids, mask_of(1, 2))
    for turns in ((3,), (), (2, 0), (3, -1)):
        with pytest.raises(ValueError, match=r"but the segments have 2"):
            Conversation((segment,), turns)
    with pytest.raises(ValueError, match="2 authors behind 1 turns; expected one fewer, or one each"):
        Conversation((segment,), (2,), ("tool", "tool"))
    with pytest.raises(ValueError, match="2 tokens has segments that sampled others"):
        Response(
            np.array([1, 9]), np.zeros(2, np.float32), np.zeros(2, np.int64), "stop", Conversation((segment,), (2,))
        )


def test_a_context_that_begins_with_the_prompt_stands_behind_it() -> None:
    prompt = np.array([5, 6])
    for context, expected in (
        (None, (True, [])),
        ([5, 6], (True, [])),
        ([5, 6, 7], (True, [7])),
        ([5], (False, [5])),
        ([6, 5, 7], (False, [6, 5, 7])),
    ):
        segment = Segment(np.arange(2), mask_of(0, 2), None if context is None else np.array(context))
        behind, own = segment.standing(prompt)
        assert (behind, own.tolist()) == expected


def test_the_ledger_keeps_what_a_verdict_says() -> None:
    verdicts = (Verdict.scored(0.1, "\ud800 \x00 né"), Verdict.unscored("why"), Verdict.failed("how"), None)
    rng = np.random.default_rng(0)
    responses = tuple(
        response_of(rng, replace(make_conversation(rng, (1, 2), (3,))[1], verdict=verdict)) for verdict in verdicts
    )
    group = replace(make_group(0, [1] * 4), responses=responses)
    found = from_bytes(to_bytes(ScoredGroup(group, np.zeros(4, np.float32))))
    assert_equal(found.group, group)
