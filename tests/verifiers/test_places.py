from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.verifiers.places import answer_in, boxed_answer, last_box, last_said, unquoted


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed {42}", "42"),
        (r"$\boxed 42$.", "42"),
        (r"it is \boxed 42 and no other", "42"),
        (r"$\boxed2$", "2"),
        (r"\fbox{42}", "42"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{x = \{1\}}", r"x = \{1\}"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"\boxed{1} or \boxed{2}", "1 or 2"),
        (r"\boxed{1}, so \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{}", None),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed", None),
        (r"\boxedsolution{5}", None),
        ("<answer>42</answer>", "42"),
        ("<answer>The answer is 42.</answer>", "42"),
        (r"<answer>41</answer> \boxed{42}", "42"),
        (r"\boxed{41} <answer>42</answer>", "42"),
        ("6*7 = 42\n#### 42", "42"),
        ("#### 42\n", "42"),
        ("#### Step 2\nThe answer is 42.", "42"),
        (r"\boxed{41}" + "\n#### 42", "42"),
        (r"#### 1. First" + "\n\\boxed{42}", "42"),
        ("The answer is 42.", "42"),
        ("The answer is 42, as required.", "42"),
        ("The answer is 42 because 6*7=42.", "42"),
        ("The answer is: $x^2+1$", "$x^2+1$"),
        ("The answer is $3$ or $4$.", "$3$ or $4$"),
        ("**Answer:**\n\n42", "42"),
        ("### Answer\n42", "42"),
        ("The answer is\n\n$$42$$", "$$42$$"),
        ("Final answer = 42", "42"),
        ("The final answer is therefore 42", "42"),
        ("答案是42。", "42"),
        ("the answer is not 42", "not 42"),
        ("42", None),
        ("", None),
    ],
)
def test_where_an_answer_stands(text: str, answer: str | None) -> None:
    assert answer_in(text) == answer


@given(
    st.lists(
        st.sampled_from(
            [r"\boxed", r"\fbox", "{", "}", "####", "answer is", "<answer>", "</answer>", "\n", " ", "7", "$"]
        )
    )
)
def test_any_text_has_a_place_or_none(parts: list[str]) -> None:
    text = "".join(parts)
    for found in (answer_in(text), last_box(text), boxed_answer(text)):
        assert found is None or isinstance(found, str)
    assert (last_said(text) or (0, "x"))[1]


@pytest.mark.parametrize(
    "text",
    ["\\boxed{", "\\boxed{1} and ", "####", "#", "answer is ", "the answer is\n", "<answer>", "*", "\\boxed ", " ,"],
)
def test_time_grows_as_the_text_does(text: str) -> None:
    def seconds(times: int) -> float:
        started = time.process_time()
        answer_in(text * times)
        return time.process_time() - started

    small, large = (min(seconds(times) for _ in range(3)) for times in (2_000, 20_000))
    assert large < 40 * max(small, 1e-3)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (r'["\\frac{1}{2}"]', r"\frac{1}{2}"),
        (r'["\\sqrt{2}", "-\\sqrt{2}"]', r'["\sqrt{2}", "-\sqrt{2}"]'),
        (r'["\frac{1}{2}"]', r'["\frac{1}{2}"]'),
        (r'["\theta", "\nu"]', r'["\theta", "\nu"]'),
        ('["5"]', "5"),
        ("[1, 2]", "[1, 2]"),
        ("[0,1)", "[0,1)"),
        ('["5"', '["5"'),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_list_of_texts_is_read_as_json_where_it_was_written_so(answer: str, text: str) -> None:
    assert unquoted(answer) == text
