from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.verdict import BadAnswer
from lpo_ray.verifiers.answers import check_answer
from lpo_ray.verifiers.calling.call import verify
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.choice import multiple_choice
from tests.support.hostile_answers import PLACED

PLANETS = {"choices": ["Mars", "Venus", "A moon", "The Sun."]}
ARC = {"choices": {"text": ["wind", "rain", "ice"], "label": ["1", "2", "3"]}}


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("The answer is (C)", "C", 1.0),
        ("The answer is C.", "C", 1.0),
        ("the answer is **C**", "C", 1.0),
        ("The correct answer is: (c).", "C", 1.0),
        ("Answer: C", "C", 1.0),
        ("Answer: C\n\nThat is because A is wrong.", "C", 1.0),
        ("The answer is C because A is too small", "C", 1.0),
        ("The answer is C - the moon", "C", 1.0),
        (r"The answer is $\boxed{C}$", "C", 1.0),
        (r"\boxed{\text{(C)}}", "C", 1.0),
        (r"\boxed{\textbf{C}}", "C", 1.0),
        (r"<answer> C </answer>", "C", 1.0),
        (r"<answer>\boxed{C}</answer>", "C", 1.0),
        ("<answer>(C) the moon</answer>", "C", 1.0),
        ("C", "C", 1.0),
        ("(C)", "(C)", 1.0),
        ("C.", "C", 1.0),
        ("C) the moon", "C", 1.0),
        ("I think about it.\n\nC", "C", 1.0),
        ("J", "J", 1.0),
        ("The answer is A. No: the answer is C.", "C", 1.0),
        (r"\boxed{A}, no, \boxed{C}", "C", 1.0),
        (r"the answer is A, no: \boxed{C}", "C", 1.0),
        (r"\boxed{A}. Wait. The answer is C.", "C", 1.0),
        ("The answer is A. No: the answer is B.", "C", 0.0),
        ("The answer is (A) or (C)", "C", 0.0),
        ("The answer is C and A", "C", 0.0),
        ("A, C", "C", 0.0),
        ("A;B", "A", 0.0),
        ("A. B", "A", 0.0),
        ("A: B", "A", 0.0),
        ("A/B", "A", 0.0),
        ("A and not B", "A", 0.0),
        ("a; b", "A", 0.0),
        ("(A)(B)", "A", 0.0),
        ("A) the moon, B) the sun", "A", 0.0),
        (r"\boxed{A} and \boxed{C}", "C", 0.0),
        (r"\boxed{A} or \boxed{C}", "A", 0.0),
        (r"\fbox{C}", "C", 1.0),
        (r"\boxed C", "C", 1.0),
        ("A. B is smaller", "A", 1.0),
        ("A. I am sure", "A", 1.0),
        (r"<think>\boxed{C}</think>B", "B", 1.0),
        (r"<think>\boxed{C}</think>B", "C", 0.0),
        (r"<think>\boxed{C}", "C", 0.0),
        (r"C, or is it</think>The answer is B", "B", 1.0),
        (r"\boxed{A, C}", "C", 0.0),
        (r"\boxed{ABC}", "A", 0.0),
        ("The answer is a number", "A", 0.0),
        ("A number.", "A", 0.0),
        ("I do not know", "I", 0.0),
        ("The answer is I think", "I", 0.0),
        ("The answer is K", "A", 0.0),
        (r"\boxed{C", "C", 0.0),
        (r"\boxed{A} and \boxed{C", "A", 0.0),
        (r"\boxed{}", "C", 0.0),
        ("<answer></answer>", "C", 0.0),
        ("", "C", 0.0),
        ("2", "C", 0.0),
    ],
)
def test_letters(response: str, answer: str, reward: float) -> None:
    assert multiple_choice(response, answer, {}).reward == reward


@pytest.mark.parametrize(
    ("response", "answer", "row", "reward"),
    [
        ("The answer is C", "2", PLANETS, 1.0),
        ("The answer is C", "A moon", PLANETS, 1.0),
        ("The answer is a  moon.", "C", PLANETS, 1.0),
        (r"\boxed{\text{A moon}}", "C", PLANETS, 1.0),
        ("the sun", "D", PLANETS, 1.0),
        ("<answer>Mars</answer>", "A", PLANETS, 1.0),
        ("<answer>Mars</answer>", "B", PLANETS, 0.0),
        ("The answer is A moon", "A", PLANETS, 0.0),
        ("The answer is E", "A", PLANETS, 0.0),
        ("The answer is B", "2", ARC, 1.0),
        ("The answer is 2", "2", ARC, 1.0),
        ("<answer>rain</answer>", "2", ARC, 1.0),
        ("<answer>3</answer>", "2", ARC, 0.0),
    ],
)
def test_choices_of_the_row(response: str, answer: str, row: dict, reward: float) -> None:
    assert multiple_choice(response, answer, row).reward == reward


@pytest.mark.parametrize(("answer", "row"), [("K", {}), ("2", {}), ("", {}), ("4", PLANETS), ("Pluto", PLANETS)])
def test_an_answer_that_is_no_choice_is_unscored(answer: str, row: dict) -> None:
    with pytest.raises(ValueError, match=re.escape(f"is {answer!r}; expected a letter A to J")):
        multiple_choice("C", answer, row)
    with pytest.raises(BadAnswer):
        check_answer("multiple_choice", answer, row)
    assert not verify("multiple_choice", [Case("", "C", answer, row)])[0].is_scored


@pytest.mark.parametrize("name", PLACED)
def test_hostile_responses_are_wrong(name: str) -> None:
    assert multiple_choice(PLACED[name], "C", PLANETS).reward == 0.0


@given(st.text(max_size=300) | st.text(alphabet="ABC()\\boxed{}answer is:<>/\n.,*$", max_size=200))
def test_any_text_gets_a_verdict(text: str) -> None:
    assert multiple_choice(text, "C", PLANETS).reward in (0.0, 1.0)
    assert multiple_choice(text, "2", ARC).reward in (0.0, 1.0)


@given(st.sampled_from("ABCDEFGHIJ"), st.sampled_from("ABCDEFGHIJ"))
def test_the_letter_decides(given_letter: str, wanted: str) -> None:
    for response in (f"So the answer is ({given_letter}).", rf"\boxed{{{given_letter}}}", given_letter):
        assert multiple_choice(response, wanted, {}).reward == float(given_letter == wanted)
