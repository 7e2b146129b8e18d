"""The transcript of a response: every sampled token in one segment, whatever tree its calls make."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.records import IntArray, Response, Turn
from lpo_ray.rollout.transcript import BRANCHED, Ending, Place, Transcript

PROMPT = np.array([1, 2, 3])


def turn(*ids: int, engine: int | None = None) -> Turn:
    array = np.array(ids)
    return Turn(array, -array.astype(np.float32) / 100, np.zeros(len(ids), np.int64), "stop", engine)


def joined(*parts: IntArray | list[int]) -> IntArray:
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


def said(transcript: Transcript, context: IntArray, *ids: int, author: str = "user", began: str = "") -> IntArray:
    """One turn at once; returns all that stands behind it."""
    transcript.said(transcript.asked(context, began), turn(*ids), author)
    return joined(context, list(ids))


def finished(transcript: Transcript, prompt: IntArray = PROMPT) -> Response:
    return transcript.response(prompt, Ending("done"))


def test_a_chain_of_calls_is_one_segment() -> None:
    transcript = Transcript()
    now = said(transcript, PROMPT, 10, 11, author="")
    now = said(transcript, joined(now, [50]), 12, author="tool")
    said(transcript, now, 13, author="assistant")
    response = finished(transcript)
    (segment,) = response.segments
    assert segment.token_ids.tolist() == [10, 11, 50, 12, 13]
    assert segment.sampled.tolist() == [True, True, False, True, True]
    assert (segment.context_ids, segment.began) == (None, "")
    assert response.turns == (2, 1, 1)
    assert response.conversation is not None
    assert response.conversation.authors == ("tool", "assistant")


def test_calls_that_overlap_are_branches_and_what_was_said_in_the_end_stands_last() -> None:
    """A main agent, and a subagent that begins from the main one's first answer while that goes on."""
    transcript = Transcript()
    first = said(transcript, PROMPT, 10)
    main, sub = transcript.asked(joined(first, [50])), transcript.asked(joined(first, [60]))
    transcript.said(sub, turn(20, 21), "user")
    behind = joined(first, [60, 20, 21, 61])
    said(transcript, behind, 22)
    transcript.said(main, turn(11), "tool")
    response = finished(transcript)
    branch, trunk = response.segments
    assert (trunk.context_ids, trunk.token_ids.tolist(), trunk.began) == (None, [10, 50, 11], "")
    assert branch.context_ids is not None
    assert (branch.context_ids.tolist(), branch.began) == ([1, 2, 3, 10, 60], BRANCHED)
    assert branch.token_ids.tolist() == [20, 21, 61, 22]
    assert response.token_ids.tolist() == [20, 21, 22, 10, 11]
    assert response.last_turn.tolist() == [11]


def test_a_history_that_was_rewritten_says_why_and_one_that_returns_goes_on() -> None:
    transcript = Transcript()
    first = said(transcript, PROMPT, 10)
    said(transcript, np.array([1, 90]), 20, began="the agent rewrote its history")
    said(transcript, joined(first, [50]), 11)
    rewritten, trunk = finished(transcript).segments
    assert (rewritten.began, trunk.began) == ("the agent rewrote its history", "")
    assert trunk.token_ids.tolist() == [10, 50, 11]


def test_the_longest_segment_is_gone_on_from() -> None:
    transcript = Transcript()
    short = said(transcript, PROMPT, 10)
    place, other = transcript.asked(joined(short, [50])), transcript.asked(joined(short, [50]))
    transcript.said(place, turn(11), "user")
    transcript.said(other, turn(11, 12), "user")
    said(transcript, joined(short, [50, 11, 12, 51]), 13)
    found = finished(transcript).segments
    assert [segment.token_ids.tolist() for segment in found] == [[10, 50, 11], [11, 12, 51, 13]]


def test_a_call_that_failed_leaves_nothing_and_its_place_can_be_taken_again() -> None:
    transcript = Transcript()
    transcript.failed(transcript.asked(np.array([9, 9])))
    first = said(transcript, PROMPT, 10, began="another conversation")
    place = transcript.asked(joined(first, [50]))
    transcript.failed(place)
    said(transcript, joined(first, [51]), 11)
    (segment,) = finished(transcript).segments
    assert (segment.token_ids.tolist(), segment.began) == ([10, 51, 11], "")
    assert transcript.first_context.tolist() == PROMPT.tolist()


def test_a_turn_is_drawn_where_the_one_before_it_was() -> None:
    transcript = Transcript()
    place = transcript.asked(PROMPT)
    assert place.engine is None
    transcript.said(place, turn(10, engine=3))
    transcript.said(transcript.asked(np.array([5])), turn(11, engine=1))
    assert transcript.asked(np.array([1, 2, 3, 10, 50])).engine == 3
    assert transcript.asked(np.array([6])).engine == 1


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["ask", "ask", "answer", "fail"]),
            st.integers(0, 30),
            st.integers(0, 6),
            st.lists(st.integers(0, 3), max_size=3),
            st.lists(st.integers(0, 3), min_size=1, max_size=3),
        ),
        min_size=1, max_size=40,
    ),
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=3),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_tree_of_calls(steps: list[tuple[str, int, int, list[int], list[int]]], prompt: list[int]) -> None:
    """Each call goes on from some place of what was said so far, cut anywhere; few token ids, so that prefixes meet by
    chance. Calls overlap and fail. What was sampled is found again: behind its context, once, in its segment.
    """
    transcript = Transcript()
    pool = [joined(prompt)]
    pending: list[Place] = []
    answered: list[tuple[IntArray, list[int]]] = []
    for kind, which, cut, more, ids in steps:
        if kind == "ask":
            start = pool[which % len(pool)]
            context = joined(start[: max(1, len(start) - (cut if cut < 3 else 0))], more)
            pending.append(transcript.asked(context))
        elif pending and kind == "fail":
            transcript.failed(pending.pop(which % len(pending)))
        elif pending:
            place = pending.pop(which % len(pending))
            transcript.said(place, turn(*ids), "user")
            answered.append((place.context_ids, ids))
            pool.append(joined(place.context_ids, ids))
    for place in pending:
        transcript.failed(place)
    assert transcript.num_turns == len(answered)
    if not answered:
        return
    response = transcript.response(joined(prompt), Ending("done"))
    assert len(response.token_ids) == sum(len(ids) for _, ids in answered)
    assert sorted(map(tuple, _turns(response, joined(prompt)))) == sorted(
        (tuple(context.tolist()), tuple(ids)) for context, ids in answered
    )
    assert response.last_turn.tolist() == answered[-1][1]
    assert sum(not segment.began for segment in response.segments) == 1


def _turns(response: Response, prompt: IntArray) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Context and tokens of every turn, read back from the segments."""
    found, number, at = [], 0, 0
    for segment in response.segments:
        context = prompt if segment.context_ids is None else segment.context_ids
        everything = joined(context, segment.token_ids)
        places = np.flatnonzero(segment.sampled) + len(context)
        while len(places):
            size = response.turns[number]
            run, places = places[:size], places[size:]
            assert (np.diff(run) == 1).all()
            ids = everything[run]
            assert ids.tolist() == response.token_ids[at : at + size].tolist()
            found.append((tuple(everything[: run[0]].tolist()), tuple(ids.tolist())))
            number, at = number + 1, at + size
    return found
