from __future__ import annotations

import pytest

from lpo_ray.verifiers.boxed import MAX_CHARACTERS, boxed, last_box


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        (r"so \boxed{42}", "42", 1.0),
        (r"\boxed{41} no, \boxed{42}", "42", 1.0),
        (r"\boxed{\frac{1}{2}}", "0.5", 1.0),
        (r"\boxed{\dfrac{3}{4}}", r"\frac{3}{4}", 1.0),
        (r"\boxed{1,234}", "1234", 1.0),
        (r"\boxed{ 3.0000001 }", "3", 1.0),
        (r"\boxed{90^\circ}", "90", 1.0),
        (r"\boxed{x+1}", "x + 1", 1.0),
        (r"\boxed{\frac{ 1 }{ 2 }}", "0.5", 1.0),
        (r"\boxed{\frac{-1}{2}}", "-0.5", 1.0),
        (r"\boxed{-\frac{1}{2}}", "-1/2", 1.0),
        (r"\boxed{1\frac{1}{2}}", "3/2", 1.0),
        (r"\boxed{-1\frac{1}{2}}", "-1.5", 1.0),
        (r"\boxed{+.5}", "1/2", 1.0),
        (r"\boxed{1,234,567}", "1234567", 1.0),
        (r"\boxed{1\frac{1}{2}}", "11/2", 0.0),
        (r"\boxed{1\frac{1}{0}}", "11/0", 0.0),
        (r"\boxed{1,2345}", "12345", 0.0),
        ("\\boxed{\uff13}", "3", 1.0),
        (r"\boxed{42} and \boxed{4", "42", 0.0),
        (r"\boxed{43}", "42", 0.0),
        ("42", "42", 0.0),
        (r"\boxed{42", "42", 0.0),
        (r"\boxed{1/0}", "42", 0.0),
        ("", "42", 0.0),
    ],
)
def test_rewards(response: str, answer: str, reward: float) -> None:
    assert boxed("", response, answer).reward == reward


def test_a_box_of_any_length_up_to_the_limit_is_read() -> None:
    assert boxed("", r"\boxed{" + "x" * MAX_CHARACTERS + "}", "x" * MAX_CHARACTERS).reward == 1.0
    verdict = boxed("", r"\boxed{" + "x" * (MAX_CHARACTERS + 1) + "}", "42")
    assert verdict.reward == 0.0
    assert "closed within 1000 characters" in verdict.detail


def test_braces_are_balanced() -> None:
    assert last_box(r"a \boxed{\sqrt{\frac{a}{b}}} b") == r"\sqrt{\frac{a}{b}}"
