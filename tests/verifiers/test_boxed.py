from __future__ import annotations

import pytest

from lpo_ray.verifiers.boxed import boxed, last_box


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
        (r"\boxed{43}", "42", 0.0),
        ("42", "42", 0.0),
        (r"\boxed{42", "42", 0.0),
        (r"\boxed{1/0}", "42", 0.0),
        ("", "42", 0.0),
    ],
)
def test_rewards(response: str, answer: str, reward: float) -> None:
    assert boxed("", response, answer).reward == reward


def test_braces_are_balanced() -> None:
    assert last_box(r"a \boxed{\sqrt{\frac{a}{b}}} b") == r"\sqrt{\frac{a}{b}}"
