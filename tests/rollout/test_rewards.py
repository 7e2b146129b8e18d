"""A group's scores from its verdicts: what evaluations count, what training adds, and whose fault a lack is."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from lpo_ray.errors import GroupLost, Unscored
from lpo_ray.records import Conversation, PromptGroup, Response, ScoredGroup, Segment
from lpo_ray.rollout.rewards import cases_of, given_verdicts, scores_of
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.overlong import Overlong
from lpo_ray.verifiers.sandbox.limits import Limits
from tests.support.builders import make_group

RIGHT = Verdict.scored(1.0, "equal")


def test_a_penalty_for_length_stands_beside_the_rewards() -> None:
    group = make_group(0, (50, 90, 100))
    scored = ScoredGroup(group, *scores_of(group, [RIGHT] * 3, Overlong(100, 20)))
    assert scored.rewards.tolist() == [1, 1, 1]
    assert scored.shaped.tolist() == [1, 0.5, 0]
    assert scored.details == ("equal",) * 3


@pytest.mark.parametrize(
    ("verdict", "error"),
    [
        (Verdict.unscored("it says nothing"), Unscored), (Verdict.abstained("not for this"), Unscored),
        (Verdict.failed("the service is gone"), GroupLost),
    ],
)  # fmt: skip
def test_whose_fault_a_missing_reward_is(verdict: Verdict, error: type[GroupLost]) -> None:
    group = make_group(0, (3, 3))
    with pytest.raises(GroupLost, match=f"response 1 stayed unscored: {verdict.detail}") as caught:
        scores_of(group, [RIGHT, verdict], Overlong(100))
    assert type(caught.value) is error
    assert type(pickle.loads(pickle.dumps(caught.value))) is error  # it comes from the service's process


def conversed(verdict: Verdict | None, *, rewritten: bool = False, empty: bool = False) -> Response:
    """Turns "1", "23", "4"; the environment wrote "9" behind the first, and behind the second "88" or nothing."""
    ids = {digit: 10 + digit for digit in range(10)}
    said = [[ids[1]], [] if empty else [ids[9]], [ids[2], ids[3]], [ids[8], ids[8]], [ids[4]]]
    pieces = [(None, said[:1]), (np.array([ids[7]]), said[2:])] if rewritten else [(None, said)]
    segments = []
    for context, parts in pieces:
        sampled = [np.full(len(part), place % 2 == 0) for place, part in enumerate(parts)]
        tokens = [token for part in parts for token in part]
        segments.append(Segment(np.array(tokens), np.concatenate(sampled), context, "anew" if context else ""))
    tokens = np.array(said[0] + said[2] + said[4])
    conversation = Conversation(tuple(segments), (1, 2, 1), ("tool", "user"), verdict)
    return Response(tokens, np.zeros(4, np.float32), np.zeros(4, np.int64), "stop", conversation)


class Digits:
    """A tokenizer of digits."""

    def decode(self, token_ids: np.ndarray) -> str:
        return "".join(str(token - 10) for token in token_ids)

    decode_plain = show = decode


@pytest.mark.parametrize(
    ("rewritten", "empty", "between"),
    [(False, False, [("tool", "9")]), (True, False, [("tool", "7")]), (False, True, [])],
)
def test_a_verifier_sees_what_was_said_last_and_the_row_all_of_it(
    rewritten: bool, empty: bool, between: list[tuple[str, str]]
) -> None:
    group = PromptGroup(make_group(0, (3,)).prompt, 0, (conversed(None, rewritten=rewritten, empty=empty),))
    (case,) = cases_of(group, Digits(), Limits())
    assert case.response == "4"
    said = [(message["role"], message["content"]) for message in case.row["messages"]]
    expected = [("assistant", "1"), *between, ("assistant", "23"), ("user", "88"), ("assistant", "4")]
    assert said[1:] == expected
    assert said[0][0] == "user"


def test_a_verifier_reads_what_an_agent_put_out() -> None:
    prompt = make_group(0, (3,)).prompt
    response = conversed(None)
    assert response.conversation is not None
    for output, expected in (("the output", "the output"), ("", ""), (None, "4")):
        found = replace(response, conversation=replace(response.conversation, output=output))
        (case,) = cases_of(PromptGroup(replace(prompt, verifier="a:b"), 0, (found,)), Digits(), Limits())
        assert case.response == expected
        assert case.sampled is not None
        assert case.sampled.response == expected


def test_verdicts_of_the_environments_count_where_every_response_has_one() -> None:
    prompt, half = make_group(0, (3,)).prompt, Verdict.scored(0.5)
    assert given_verdicts(PromptGroup(prompt, 0, (conversed(RIGHT), conversed(half)))) == [RIGHT, half]
    assert given_verdicts(PromptGroup(prompt, 0, (conversed(RIGHT), conversed(None)))) is None, "one judge for all"
    assert given_verdicts(make_group(0, (3, 4))) is None
    none = Verdict.unscored("it cannot say")
    group = PromptGroup(prompt, 0, (conversed(RIGHT), conversed(none)))
    with pytest.raises(Unscored, match="response 1 stayed unscored: it cannot say"):
        scores_of(group, given_verdicts(group) or [], Overlong(100))


def test_the_penalty_for_length_is_of_the_longest_turn() -> None:
    group = PromptGroup(make_group(0, (3,)).prompt, 0, (conversed(RIGHT),))
    assert (
        scores_of(group, [RIGHT], Overlong(3, 2)).shaping.tolist()
        == scores_of(make_group(0, (2,)), [RIGHT], Overlong(3, 2)).shaping.tolist()
    )
