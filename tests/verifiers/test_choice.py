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


LETTERS = {"choices": ["C", "D", "A", "B"]}
BACKWARDS = {"choices": ["e", "d", "c", "b", "a"]}
VITAMINS = {"choices": ["Vitamin C", "Vitamin D", "Vitamin", "Vitamin A, B"]}
CAPITALS = {"choices": ["Paris", "London", "No city", "-5", "5", "5.5"]}
PERMUTED = {"choices": {"text": ["w", "x", "y", "z"], "label": ["A", "C", "D", "B"]}}
NUMBERED = {"choices": {"text": ["w", "x", "3", "2.5"], "label": ["1", "2", "3", "4"]}}
TWELVE = {"choices": [f"city {number}" for number in range(12)]}
SIGNS = {"choices": ["*", "$", ".", "$x^{2}$"]}


@pytest.mark.parametrize("row", [LETTERS, BACKWARDS])
@pytest.mark.parametrize("wanted", "ABCD")
def test_a_label_that_is_also_a_text_is_the_label(row: dict, wanted: str) -> None:
    for letter in "ABCD":
        for response in (letter, f"The answer is {letter}.", rf"\boxed{{{letter}}}", letter.lower(), f"({letter})"):
            assert multiple_choice(response, wanted, row).reward == float(letter == wanted)


@pytest.mark.parametrize(
    ("response", "answer", "row", "reward"),
    [
        ("A. Vitamin D", "A", VITAMINS, 0.0),
        ("A. Vitamin D", "B", VITAMINS, 0.0),
        ("B. Vitamin D", "B", VITAMINS, 1.0),
        ("C. Vitamin", "C", VITAMINS, 1.0),
        ("C. vitamin  D", "C", VITAMINS, 0.0),
        ("D. Vitamin A, B", "D", VITAMINS, 1.0),
        ("D. Vitamin A, B or C", "D", VITAMINS, 0.0),
        ("The answer is A (Vitamin C).", "A", VITAMINS, 1.0),
        ("The answer is A (Vitamin D).", "A", VITAMINS, 0.0),
        ("The answer is A (I think).", "A", VITAMINS, 0.0),
        ("A, because there is no vitamin B.", "A", VITAMINS, 1.0),
        (r"\boxed{A: London}", "A", CAPITALS, 0.0),
        (r"\boxed{A: Paris}", "A", CAPITALS, 1.0),
        (r"\boxed{B) \text{London}}", "B", CAPITALS, 1.0),
        ("A - London", "A", CAPITALS, 0.0),
        ('(A) "London"', "A", CAPITALS, 0.0),
        ("A. Paris, as London is in England", "A", CAPITALS, 1.0),
        ("C. No city", "C", CAPITALS, 1.0),
        ("D. -5", "D", CAPITALS, 1.0),
        ("D. 5", "D", CAPITALS, 0.0),
        ("F: 5.5", "F", CAPITALS, 1.0),
        ("E: 5.5", "E", CAPITALS, 0.0),
        ("The answer is A. No wait, B", "A", CAPITALS, 0.0),
        ("The answer is A. No wait, B", "A", {}, 0.0),
        ("The answer is A. No, it is B.", "A", {}, 0.0),
        ("The answer is A... hmm, (B)", "A", {}, 0.0),
        ("The answer is A; actually B is right", "A", {}, 0.0),
        ("The answer is A, rather than B.", "A", {}, 1.0),
        ("The answer is A. No doubt about it.", "A", {}, 1.0),
        ("Option A", "A", {}, 1.0),
        ("Choice (A).", "A", {}, 1.0),
        ("The answer is option A: Paris", "A", CAPITALS, 1.0),
        ("The answer is option A: London", "A", CAPITALS, 0.0),
        ("Option A or option B", "A", {}, 0.0),
        ("Options A", "A", {}, 0.0),
    ],
)
def test_a_label_with_something_after_it(response: str, answer: str, row: dict, reward: float) -> None:
    assert multiple_choice(response, answer, row).reward == reward


@pytest.mark.parametrize(
    "form", ["{}", "({})", "{}.", "**{}**", "{}. {text}", "{}) {text}", "The answer is ({}).", "Option {}"]
)
@pytest.mark.parametrize("row", [PERMUTED, NUMBERED, TWELVE])
def test_labels_are_those_of_the_row(row: dict, form: str) -> None:
    choices = row["choices"]
    texts, labels = (choices["text"], choices["label"]) if isinstance(choices, dict) else (choices, "ABCDEFGHIJKL")
    for label, text in zip(labels, texts, strict=True):
        for wanted in labels:
            assert multiple_choice(form.format(label, text=text), wanted, row).reward == float(label == wanted)


@pytest.mark.parametrize(
    ("response", "answer", "row", "raw_answer", "reward"),
    [
        ("K", "10", TWELVE, 10, 1.0),
        ("C. x", "C", PERMUTED, "C", 1.0),
        ("B. x", "C", PERMUTED, "C", 0.0),
        ("E", "C", PERMUTED, "C", 0.0),
        ("2.5", "4", NUMBERED, "4", 1.0),
        ("2.5", "2", NUMBERED, "2", 0.0),
        ("2 apples", "2", NUMBERED, "2", 0.0),
        ("2. 3", "2", NUMBERED, "2", 0.0),
        ("2 or 3", "2", NUMBERED, "2", 0.0),
        ("2-3", "2", NUMBERED, "2", 0.0),
        ("12", "2", NUMBERED, "2", 0.0),
        ("B", "2", NUMBERED, 2, 1.0),
        ("C", "2", {"choices": {"text": ["1", "2", "3", "0"], "label": list("ABCD")}}, 2, 1.0),
        ("$", "$", SIGNS, "$", 1.0),
        ("*", "$", SIGNS, "$", 0.0),
        ("<answer>.</answer>", "C", SIGNS, "C", 1.0),
        (r"\boxed{x^{2}}", "D", SIGNS, "D", 1.0),
        (".5", "A", {"choices": [".5", "5"]}, "A", 1.0),
        ("5", "A", {"choices": [".5", "5"]}, "A", 0.0),
        ("cafe\u0301", "A", {"choices": ["caf\u00e9", "bar"]}, "A", 1.0),
        ("\u0130.", "I", TWELVE, "I", 0.0),
    ],
)
def test_labels_and_texts_that_look_alike(
    response: str, answer: str, row: dict, raw_answer: object, reward: float
) -> None:
    assert multiple_choice(response, answer, row, raw_answer=raw_answer).reward == reward


@pytest.mark.parametrize("label", [["A"], ["A", "A"], ["A", " "], ["A", "a"], ["A", "B", "C"]])
def test_labels_that_do_not_tell_the_texts_apart_are_refused(label: list[str]) -> None:
    with pytest.raises(BadAnswer, match="expected one for each of 2 texts"):
        check_answer("multiple_choice", "A", {"choices": {"text": ["x", "y"], "label": label}})


@pytest.mark.parametrize(
    ("answer", "row", "expected"),
    [
        ("K", {}, "a letter A to J"),
        ("2", {}, "a letter A to J"),
        ("", {}, "a letter A to J"),
        ("4", PLANETS, "one of the labels A, B, C, D, the text of one of 4 choices, or its number counted from 0"),
        ("Pluto", PLANETS, "one of the labels A, B, C, D, "),
        ("0", ARC, "one of the labels 1, 2, 3, the text of one of 3 choices"),
        ("M", TWELVE, "one of the labels A, "),
    ],
)
def test_an_answer_that_is_no_choice_is_unscored(answer: str, row: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"is {answer!r}; expected {expected}")):
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
    for row in (ARC, TWELVE, CAPITALS):
        assert multiple_choice(text, "2", row).reward in (0.0, 1.0)


@given(st.sampled_from("ABCDEFGHIJ"), st.sampled_from("ABCDEFGHIJ"))
def test_the_letter_decides(given_letter: str, wanted: str) -> None:
    for response in (f"So the answer is ({given_letter}).", rf"\boxed{{{given_letter}}}", given_letter):
        assert multiple_choice(response, wanted, {}).reward == float(given_letter == wanted)
