from __future__ import annotations

import json
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.tasks.sources.countdown_problems import Split, answer_json, generate
from lpo_ray.verdict import BadAnswer
from lpo_ray.verifiers.calling.call import verify
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.countdown import countdown, countdown_strict

ANSWER = json.dumps({"numbers": [3, 5, 7], "target": 22})


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("3*5+7", 1.0),
        ("7 + (5 * 3)", 1.0),
        ("3*5+7=22", 1.0),
        ("3*5+7 = 22", 1.0),
        ("-(-(3*5))+7", 1.0),
        ("thinking <answer>1</answer> no, <answer> 3*5+7 </answer>", 1.0),
        ("3 × 5 + 7", 1.0),
        ("3·5 + 7 = 22.", 1.0),
        (r"<answer>$3 \times 5 + 7$</answer>", 1.0),
        (r"<answer>\(3 \cdot 5 + 7\)</answer>", 1.0),
        (r"<answer>\boxed{3*5+7}</answer>", 1.0),
        (r"<answer>$\boxed{\left(3 \times 5\right) + 7 = 22}$</answer>", 1.0),
        ("<answer>22 = 3*5+7</answer>", 1.0),
        ("<answer>[3*5]+7</answer>", 1.0),
        ("\uff13\uff0a\uff15\uff0b\uff17", 1.0),
        ("\uff083*5\uff09\uff0b7\uff1d\uff12\uff12", 1.0),
        ("3(5)+7", 1.0),
        ("(3)5 + 7", 1.0),
        ("(3) (5)+7", 1.0),
        ("7(3-5)", 0.1),
        ("3 5+7", 0.0),
        ("()3*5+7", 0.0),
        ("<answer>7 − 3 ÷ 5</answer>", 0.1),
        ("<think><answer>3*5+7</answer></think><answer>3*5-7</answer>", 0.1),
        ("<answer>3*5-7</answer></think><answer>3*5+7</answer>", 1.0),
        ("<think>3*5+7", 0.0),
        (r"\boxed{3*5+7", 0.0),
        ("23 = 3*5+7", 0.0),
        ("22 = 22", 0.1),
        ("3*5-7", 0.1),
        ("3*5+7+0", 0.1),
        ("3*5+7*1", 0.1),
        ("22", 0.1),
        ("3+3+5", 0.1),
        ("3/(5-5)", 0.1),
        ("3*5+7=23", 0.0),
        ("", 0.0),
        ("the answer is 22", 0.0),
        ("3**5", 0.0),
        ("3//5", 0.0),
        ("3*5+", 0.0),
        ("3,5,7", 0.0),
        ("+3*5+7", 0.0),
        ("3.0*5+7", 0.0),
        ("3*5+7</answer>", 0.0),
        ("03*5+7", 0.0),
        ("00", 0.0),
        ("10*5+100", 0.1),
    ],
)
def test_rewards(response: str, reward: float) -> None:
    assert countdown("", response, ANSWER).reward == reward
    assert countdown_strict("", response, ANSWER).reward == (1.0 if reward == 1.0 else 0.0)


def test_exact_rational_arithmetic() -> None:
    assert countdown("", "8/(3-8/3)", json.dumps({"numbers": [8, 3, 8, 3], "target": 24})).reward == 1.0
    # floating point says 49*(1/49) != 1
    assert countdown("", "49*(1/49)", json.dumps({"numbers": [49, 1, 49], "target": 1})).reward == 1.0


HOSTILE = {
    "power": "10**9**9",
    "zero": "1/0",
    "long": "1" * 100_000,
    "long sum": "+".join(["1"] * 50_000),
    "huge number": "9" * 150,
    "fullwidth digits": "\uff13*\uff15+\uff17",
    "superscript": "3\u00b2",
    "arabic digits": "\u0663*5+7",
    "nested": "(" * 99 + "1" + ")" * 99,
    "deep": "(" * 50_000,
    "minus": "-" * 199 + "1",
    "null": "3*5\x00+7",
    "import": "__import__('os').system('true')",
    "hex": "0x10+5+7",
    "underscore": "1_0+5+7",
    "complex": "3j*5+7",
    "walrus": "(a:=3)*5+7",
    "tags": "<answer>" * 20_000 + "</answer>" * 20_000,
    "surrogate": "\ud800",
    "shift": "1<<99999999",
    "newlines": "\n" * 100_000 + "3*5+7",
    "product": "*".join(["999999999"] * 19),
    "open box": "\\boxed{" + "{" * 100_000,
    "long box": "\\boxed{" + "x" * 1_000_000,
    "boxes": "\\boxed{" * 20_000,
    "fractions": "\\boxed{" + "\\frac{1}{" * 90 + "}" * 91,
    "commas": "\\boxed{" + "1," * 400 + "}",
}


@pytest.mark.parametrize("verifier", ["countdown", "countdown_strict", "boxed"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_responses_get_a_verdict_in_under_ten_milliseconds(name: str, verifier: str) -> None:
    def seconds() -> float:
        started = time.perf_counter()
        assert verify(verifier, [Case("", HOSTILE[name], ANSWER)])[0].is_scored
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 0.010


@given(st.text(max_size=300))
def test_any_text_gets_a_verdict(text: str) -> None:
    for verifier in ("countdown", "countdown_strict", "boxed"):
        assert verify(verifier, [Case("", text, ANSWER)])[0].is_scored


@given(st.text(alphabet="0123456789+-*/() =", max_size=40))
def test_the_checker_agrees_with_an_evaluator_of_its_own(text: str) -> None:
    """A recursive-descent evaluator written for this test: no ast, no shared code."""
    value = _Parser(text.replace(" ", "")).whole() if "=" not in text else None
    verdict = countdown("", text, json.dumps({"numbers": [1], "target": 1}))
    if value is None:
        return
    numbers, result = value
    expected = 1.0 if numbers == [1] and result == 1 else 0.1
    if " " not in text.strip() and max(numbers, default=0) < 10**9:
        assert verdict.reward == expected, text


_TREES = st.recursive(
    st.integers(0, 30).map(lambda number: (str(number), [number], Fraction(number))),
    lambda trees: st.one_of(
        trees.map(lambda tree: (f"-({tree[0]})", tree[1], None if tree[2] is None else -tree[2])),
        st.builds(lambda left, operator, right: _joined(left, operator, right), trees, st.sampled_from("+-*/"), trees),
    ),
    max_leaves=5,
)
"""(text, numbers used, value or None after a division by zero)"""


def _joined(left: tuple, operator: str, right: tuple) -> tuple:
    text, used = f"({left[0]}){operator} ({right[0]})", left[1] + right[1]
    if left[2] is None or right[2] is None or (operator == "/" and right[2] == 0):
        return text, used, None
    compute = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}
    return text, used, compute[operator](left[2], right[2])


@given(_TREES, st.permutations(range(5)), st.integers(-3, 3))
def test_random_expressions_are_scored_by_their_numbers_and_exact_value(tree: tuple, order: list, off: int) -> None:
    text, used, value = tree
    numbers = [used[place] for place in order if place < len(used)]
    target = 0 if value is None else int(value) + off
    answer = json.dumps({"numbers": numbers, "target": target})
    assert countdown("", text, answer).reward == (1.0 if value == target else 0.1)
    assert countdown("", text, json.dumps({"numbers": [*numbers, 1], "target": target})).reward == 0.1


class _Parser:
    """expr = term (+|- term)*; term = unary (*|/ unary)*; unary = -unary | atom; atom = digits | (expr)."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.numbers = text, 0, []

    def whole(self) -> tuple[list[int], Fraction] | None:
        try:
            value = self.expr()
        except (ValueError, ZeroDivisionError, IndexError):
            return None
        return (self.numbers, value) if self.at == len(self.text) else None

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def expr(self) -> Fraction:
        value = self.term()
        while self.peek() in ("+", "-") and self.peek():
            sign = self.text[self.at]
            self.at += 1
            right = self.term()
            value = value + right if sign == "+" else value - right
        return value

    def term(self) -> Fraction:
        value = self.unary()
        while self.peek() in ("*", "/") and self.peek():
            sign = self.text[self.at]
            self.at += 1
            right = self.unary()
            value = value * right if sign == "*" else value / right
        return value

    def unary(self) -> Fraction:
        if self.peek() == "-":
            self.at += 1
            return -self.unary()
        if self.peek() == "(":
            self.at += 1
            value = self.expr()
            if self.peek() != ")":
                raise ValueError
            self.at += 1
            return value
        start = self.at
        while self.peek().isdigit():
            self.at += 1
        digits = self.text[start : self.at]
        if not digits or (len(digits) > 1 and digits[0] == "0"):
            raise ValueError
        self.numbers.append(int(digits))
        return Fraction(int(digits))


@given(st.integers(0, 10**6), st.sampled_from([(3,), (4,), (3, 4)]), st.sampled_from(["train", "heldout"]))
def test_every_generated_solution_is_correct(index: int, counts: tuple[int, ...], split: Split) -> None:
    problem = generate(7, index, split=split, counts=counts)
    assert countdown_strict("", problem.solution, answer_json(problem)).reward == 1.0
    assert countdown("", problem.solution, answer_json(problem)).reward == 1.0


def test_a_broken_answer_is_unscored_never_zero() -> None:
    verdict = verify("countdown", [Case("", "3*5+7", "not json")])[0]
    assert verdict.reward is None
    assert "JSONDecodeError" in verdict.detail
    for answer in ("[1]", '{"numbers": [1]}', '{"numbers": null, "target": 1}', '{"numbers": [1], "target": "x"}', "7"):
        with pytest.raises(BadAnswer, match="expected JSON like"):
            countdown("", "1", answer)


@pytest.mark.parametrize("broken", [19.5, 3.9, "347", True, None, [3], float("nan"), float("inf"), "3"])
def test_numbers_that_are_not_whole_are_refused(broken: object) -> None:
    for problem in ({"numbers": [3, broken], "target": 22}, {"numbers": [3, 5, 7], "target": broken}):
        with pytest.raises(BadAnswer, match="is no whole number"):
            countdown("", "3*5+7", json.dumps(problem))
    with pytest.raises(BadAnswer, match="-3 is below 0"):
        countdown("", "3*5+7", json.dumps({"numbers": [3, -3], "target": 22}))
    for numbers in ("347", [], {"3": 1}, 3):
        with pytest.raises(BadAnswer, match="no list of numbers"):
            countdown("", "3*5+7", json.dumps({"numbers": numbers, "target": 22}))
    assert countdown("", "3*5+7", '{"numbers": [3.0, 5, 7], "target": 22.0}').reward == 1.0
    assert countdown("", "3*5+7", json.dumps({"numbers": [3, 5, 7], "target": 10**400})).reward == 0.1
