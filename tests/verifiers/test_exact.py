from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.verdict import BadAnswer
from lpo_ray.verifiers.calling.call import verify
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.exact import MAX_CHARACTERS, exact, regex
from tests.support.hostile_answers import PLACED


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("Paris", "Paris", 1.0),
        ("  Paris\n", "Paris", 1.0),
        ("New \n York", "New York", 1.0),
        ("I think <answer> Paris </answer> it is", "Paris", 1.0),
        ("cafe\u0301", "caf\u00e9", 1.0),
        ("caf\u00e9", "cafe\u0301", 1.0),
        ("cafe", "caf\u00e9", 0.0),
        ("x\u00b2", "x2", 0.0),
        ("<answer>Rome</answer><answer>Paris</answer>", "Paris", 1.0),
        ("<think>Paris?</think> Rome", "Rome", 1.0),
        ("Rome? No.</think>Paris", "Paris", 1.0),
        ("<think>Paris", "Paris", 0.0),
        ("paris", "Paris", 0.0),
        ("Paris.", "Paris", 0.0),
        ("<answer>Paris", "Paris", 0.0),
        ("Paris</answer>", "Paris", 0.0),
        ("<answer>Paris</answer><answer>Rome</answer>", "Paris", 0.0),
        ("", "Paris", 0.0),
    ],
)
def test_exact(response: str, answer: str, reward: float) -> None:
    assert exact(response, answer).reward == reward


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("colour", "colou?r", 1.0),
        ("<answer>color</answer>", "colou?r", 1.0),
        ("the color", "colou?r", 0.0),
        ("color\n", "colou?r", 1.0),
        ("2024-02-29", r"\d{4}-\d{2}-\d{2}", 1.0),
        ("PARIS", "(?i)paris", 1.0),
        ("", ".+", 0.0),
        ("x" * MAX_CHARACTERS, "x+", 1.0),
        ("x" * (MAX_CHARACTERS + 1), "x+", 0.0),
    ],
)
def test_regex(response: str, answer: str, reward: float) -> None:
    assert regex(response, answer).reward == reward


@pytest.mark.parametrize("pattern", ["", " ", "(", "[a", "*", "(?P<a>x)(?P<a", "a{2,1}"])
def test_a_broken_pattern_is_unscored(pattern: str) -> None:
    with pytest.raises(BadAnswer, match="the answer of regex is"):
        regex("x", pattern)
    verdict = verify("regex", [Case("", "x", pattern)])[0]
    assert verdict.reward is None
    assert "error" in verdict.detail or not pattern.strip()


@pytest.mark.parametrize("answer", ["", " \n"])
def test_nothing_is_no_answer(answer: str) -> None:
    with pytest.raises(BadAnswer, match="expected a text that is not empty"):
        exact("", answer)


@pytest.mark.parametrize("answers", [[], [None], ["Paris", None], ["Paris", ""], ["Paris", ["Rome"]], [{"a": 1}], {}])
def test_a_list_with_something_else_than_texts_is_unscored(answers: object) -> None:
    with pytest.raises(BadAnswer, match="or a list of them"):
        exact("None", str(answers), raw_answer=answers)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(.*a){20}b"])
def test_backtracking_ends_as_wrong(pattern: str) -> None:
    """All the ways to match are more than 2^600: that the call returns at all says that it was broken off."""
    assert regex("a" * 900 + "!", pattern).reward == 0.0


@pytest.mark.parametrize("name", PLACED)
def test_hostile_responses_are_wrong(name: str) -> None:
    assert exact(PLACED[name], "42").reward == 0.0
    assert regex(PLACED[name], "[Pp]aris").reward == 0.0


@given(st.text(max_size=300))
def test_any_text_gets_a_verdict(text: str) -> None:
    if text.strip():
        assert exact(text, text).reward == 1.0 or "<" in text
    assert regex(text, "(?s).*").reward == 1.0


def test_any_of_the_targets_of_search_r1_is_right() -> None:
    for targets in (["Ada", "Ada Lovelace"], "Ada"):
        assert exact("<answer>Ada</answer>", '{"target": ...}', raw_answer={"target": targets}).reward == 1.0
        assert exact("<answer>Bob</answer>", '{"target": ...}', raw_answer={"target": targets}).reward == 0.0
    with pytest.raises(BadAnswer):
        exact("<answer>Ada</answer>", "", raw_answer={"target": []})
