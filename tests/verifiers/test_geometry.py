from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.verdict import BadAnswer
from lpo_ray.verifiers.calling.call import verify
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.geometry import geometry, number_in
from tests.support.hostile_answers import PLACED


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        (r"\boxed{35}", "35", 1.0),
        (r"\boxed{35^\circ}", "35", 1.0),
        (r"\boxed{35°}", "35", 1.0),
        (r"\boxed{35 \text{ degrees}}", "35", 1.0),
        (r"\boxed{x = 35}", "35", 1.0),
        (r"\boxed{m\angle ABC = 35^{\circ}}", "35", 1.0),
        (r"\boxed{12 \text{ cm}}", "12", 1.0),
        (r"\boxed{12 cm^2}", "12", 1.0),
        (r"\boxed{12\text{ cm}^{2}}", "12", 1.0),
        (r"\boxed{12 square units}", "12.0", 1.0),
        (r"\boxed{10\sqrt{2}}", "14.1", 1.0),
        (r"\boxed{14.14}", r"10 \sqrt { 2 }", 1.0),
        (r"\boxed{AB \approx 14.142}", r"10 \sqrt { 2 }", 1.0),
        (r"\boxed{\frac{25}{3}\pi}", r"\frac { 25 \pi } { 3 }", 1.0),
        (r"\boxed{2\sqrt{221}}", r"2 \sqrt { 221 }", 1.0),
        (r"\boxed{1{,}234}", "1234", 1.0),
        (r"\boxed{-3}", "-3", 1.0),
        (r"\boxed{1\frac12}", "1.5", 1.0),
        (r"\boxed{\approx 7.07}", r"5\sqrt{2}", 1.0),
        (r"\boxed{34.99}", "35", 1.0),
        (r"\boxed{1,250}", "1250", 1.0),
        (r"\boxed{5'}", "5", 1.0),
        (r"\boxed{5 m}", "5", 1.0),
        (r"\boxed{5 in.}", "5", 1.0),
        (r"\boxed{5 sq. units}", "5", 1.0),
        (r"\boxed{5 units^2}", "5", 1.0),
        (r"\fbox{35}", "35", 1.0),
        (r"\boxed 35", "35", 1.0),
        (r"\boxed{35}", r"so it is $\boxed{35}$.", 1.0),
        (r"<think>\boxed{34}</think> \boxed{35}", "35", 1.0),
        (r"\boxed{35}</think> \boxed{34}", "35", 0.1),
        (r"<think>\boxed{35}", "35", 0.0),
        (r"\boxed{1001}", "1000", 0.1),
        (r"\boxed{3004}", "3001", 0.1),
        (r"\boxed{1000.9}", "1000", 0.1),
        (r"\boxed{0.5}", r"1\frac12", 0.1),
        (r"\boxed{(0,125)}", "125", 0.0),
        (r"\boxed{12, 125}", "12125", 0.0),
        (r"\boxed{3 = 5}", "5", 0.0),
        (r"\boxed{34}", "35", 0.1),
        (r"\boxed{14.1}", r"10 \sqrt { 2 }", 0.1),
        (r"\boxed{-35}", "35", 0.1),
        (r"\boxed{x}", "35", 0.0),
        (r"\boxed{\text{thirty-five}}", "35", 0.0),
        (r"\boxed{}", "35", 0.0),
        (r"\boxed{35", "35", 0.0),
        (r"\boxed{35} \boxed{3", "35", 0.0),
        (r"\boxed{1/0}", "35", 0.0),
        ("35", "35", 0.0),
        ("", "35", 0.0),
    ],
)
def test_rewards(response: str, answer: str, reward: float) -> None:
    assert geometry(response, answer).reward == reward


@pytest.mark.parametrize("answer", ["", "B", "none of these", "x+1"])
def test_an_answer_without_a_value_is_unscored(answer: str) -> None:
    with pytest.raises(BadAnswer, match=re.escape(f"is {answer!r}; expected a number")):
        geometry(r"\boxed{35}", answer)
    assert not verify("geometry", [Case("", r"\boxed{35}", answer)])[0].is_scored


@pytest.mark.parametrize("name", PLACED)
def test_hostile_responses_are_wrong(name: str) -> None:
    assert geometry(PLACED[name], "35").reward in (0.0, 0.1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3.0),
        ("-3.5", -3.5),
        ("+.5", 0.5),
        ("1,234,567", 1234567.0),
        ("1{,}234", 1234.0),
        (r"\frac12", 0.5),
        (r"\frac{1}{2}", 0.5),
        (r"-\dfrac{1}{2}", -0.5),
        (r"3\frac{1}{2}", 3.5),
        ("3 1/2", 3.5),
        (r"3\frac{\sqrt{4}}{2}", 3.0),
        (r"2\sqrt3", 2 * math.sqrt(3)),
        (r"\sqrt[3]{-8}", -2.0),
        (r"\sqrt[4]{16}", 2.0),
        (r"2\pi", 2 * math.pi),
        ("2π", 2 * math.pi),
        ("√4", 2.0),
        (r"2 \cdot 3 \times 4 ÷ 6", 4.0),
        ("2^{10}", 1024.0),
        ("2^-1", 0.5),
        ("-3^2", -9.0),
        ("(1+2)(3+4)", 21.0),
        (r"\left( 1 + 2 \right)^2", 9.0),
        ("2*-3", -6.0),
        ("1-2-3", -4.0),
        ("8/4/2", 1.0),
    ],
)
def test_values(text: str, value: float) -> None:
    assert number_in(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", " ", "x", "2x", "1 2", "1..2", "1/0", "(1", "1)", "1+", "--1", "2^10", r"\sqrt{-1}", r"(-1)^{0.5}", "9^9^9^9",
     "9^{9^{9^{9}}}", r"\frac{1}", r"\frac", "1,23", "1e99999", "nan", "inf", "(0,100)", "x+1", "3 = 5",
     "(" * 100 + "1" + ")" * 100],
)  # fmt: skip
def test_what_has_no_value(text: str) -> None:
    assert number_in(text) is None


_SUMS = st.recursive(
    st.integers(0, 50).map(lambda number: (str(number), Fraction(number))),
    lambda parts: st.one_of(
        st.tuples(parts, parts).map(lambda two: (f"({two[0][0]} + {two[1][0]})", two[0][1] + two[1][1])),
        st.tuples(parts, parts).map(lambda two: (f"({two[0][0]}-{two[1][0]})", two[0][1] - two[1][1])),
        st.tuples(parts, parts).map(lambda two: (f"{two[0][0]} \\cdot {two[1][0]}", two[0][1] * two[1][1])),
        st.tuples(parts, parts.filter(lambda part: part[1] != 0)).map(
            lambda two: (f"\\frac{{{two[0][0]}}}{{{two[1][0]}}}", two[0][1] / two[1][1])
        ),
        parts.map(lambda one: (f"{{{one[0]}}}^2", one[1] ** 2)),
    ),
    max_leaves=5,
)


@given(_SUMS)
def test_random_expressions_have_their_exact_value(expression: tuple[str, Fraction]) -> None:
    text, value = expression
    found = number_in(text)
    assert found is not None
    assert found == pytest.approx(float(value), rel=1e-9, abs=1e-9)


@given(st.text(max_size=300) | st.text(alphabet="0123456789+-*/^(){}[]\\.,fracsqtpi ", max_size=100))
def test_any_text_gets_a_verdict(text: str) -> None:
    assert geometry(f"\\boxed{{{text}}}", "35").reward in (0.0, 0.1, 1.0)
    value = number_in(text)
    assert value is None or math.isfinite(value)
