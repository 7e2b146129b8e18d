from __future__ import annotations

import sys
import time

import math_verify
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.verdict import BadAnswer
from lpo_ray.verifiers.answers import check_answer
from lpo_ray.verifiers.calling.call import verify
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.mathematics.verifier import math
from tests.support.hostile_answers import PLACED
from tests.support.math_table import OURS, TABLE

LATEX = [
    r"\frac",
    r"\sqrt",
    r"\pi",
    r"{",
    r"}",
    r"(",
    r")",
    r"[",
    r"]",
    r"^",
    r"_",
    r",",
    r"=",
    r"<",
    r">",
    r"+",
    r"-",
    r"*",
    r"/",
    r"\cdot",
    r"\pm",
    r"\cup",
    r"\in",
    r"\infty",
    r"\{",
    r"\}",
    r"\%",
    r"x",
    r"y",
    r"n",
    r"e",
    r"i",
    r"0",
    r"1",
    r"2",
    r"9",
    r"10",
    r"&",
    r"\\",
    r"!",
    r"|",
    r"\sin",
    r"\log",
    r"\binom",
    r"\text{",
    r"or",
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    r"\overline",
    r".",
    r":",
    r";",
    r"\$",
    r"**",
    r"999",
    r"\exp",
    r"cm",
]
ALLOWED_SECONDS = 0.25
"""processor time of one verdict, whatever the response says; as a rule it is a hundredth of a thousandth"""


@pytest.mark.parametrize(("response", "answer", "expected"), TABLE)
def test_the_table(response: str, answer: str, expected: int) -> None:
    assert math(response, answer).reward == expected


@pytest.mark.parametrize(("response", "answer", "expected"), OURS)
def test_where_math_verify_says_otherwise(response: str, answer: str, expected: int) -> None:
    gold, target = math_verify.parse(f"${answer}$"), math_verify.parse(response)
    assert math_verify.verify(gold, target) != bool(expected)


@pytest.mark.parametrize("answer", ["42", r"\frac{x+1}{2}", r"[0,1)", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"])
@pytest.mark.parametrize("name", PLACED)
def test_hostile_responses_are_wrong_and_quick(name: str, answer: str) -> None:
    def seconds() -> float:
        started = time.process_time()
        verdict = verify("math", [Case("", PLACED[name], answer)])[0]
        assert verdict.reward in (0.0, 1.0) if "digits" in name else verdict.reward == 0.0, verdict
        return time.process_time() - started

    assert min(seconds() for _ in range(3)) < ALLOWED_SECONDS


@pytest.mark.parametrize(
    "answer",
    ["", "  ", "$$", r"\boxed{}", "proof", "Proof.", "notfound", r"\text{Not found}", "null", "####",
     "Let n be even. Then n^2 is even too, which is what we had to show, and since the other case is the same we are "
     "done with the whole of the proof that was asked for in the problem."],
)  # fmt: skip
@pytest.mark.parametrize("verifier", ["math", "boxed"])
def test_an_answer_that_says_nothing_is_unscored(verifier: str, answer: str) -> None:
    with pytest.raises(BadAnswer, match="the answer of a mathematics task is"):
        check_answer(f"{verifier} + 0.2*think_format", answer, {})
    verdict = verify(verifier, [Case("", r"\boxed{1}", answer)])[0]
    assert verdict.reward is None
    assert "expected a number" in verdict.detail


@pytest.mark.parametrize(
    ("response", "answer"), [("", "42"), (r"\boxed{}", "42"), (r"\boxed{ }", "x"), ("<answer></answer>", "0")]
)
def test_an_empty_response_is_wrong(response: str, answer: str) -> None:
    assert math(response, answer).reward == 0.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\sqrt{10^{30}+1}", "10^{15}"),
        (r"\sqrt{10^{30}+1}", r"\sqrt{10^{30}+2}"),
        ("0.000001", r"\frac{1}{1000001}"),
        (r"5\pmod{7}", r"5\pmod{8}"),
        ("3 am", "3 pm"),
        ("x=5,y=6,7", "6,5,7"),
        ("(y,x)=(5,6)", "(x,y)=(5,6)"),
    ],
)
def test_what_is_hard_to_tell_apart_is_not_equal(one: str, other: str) -> None:
    assert math(f"\\boxed{{{one}}}", other).reward == 0
    assert math(f"\\boxed{{{other}}}", one).reward == 0


@given(st.text(max_size=200))
def test_any_text_gets_a_verdict(text: str) -> None:
    for response in (text, f"\\boxed{{{text}}}", f"The answer is {text}", f"#### {text}"):
        assert verify("math", [Case("", response, r"\frac{x}{2}")])[0].is_scored


@settings(max_examples=400)
@given(st.lists(st.sampled_from(LATEX), min_size=1, max_size=60), st.sampled_from(["x^2+1", "[0,1)", "(1,2)", "7"]))
def test_any_latex_gets_a_verdict_in_time(parts: list[str], answer: str) -> None:
    for joint in ("", " "):
        started = time.process_time()
        assert verify("math", [Case("", f"\\boxed{{{joint.join(parts)}}}", answer)])[0].is_scored
        assert time.process_time() - started < ALLOWED_SECONDS


@given(st.lists(st.sampled_from(LATEX), min_size=1, max_size=20).map(" ".join))
def test_an_answer_that_can_be_read_is_equal_to_itself(text: str) -> None:
    """So reading is a function of the text alone; but for what has no value, as 1/0, an equation such as 0 = 0, or
    different ends of one text.
    """
    try:
        check_answer("math", text, {})
    except BadAnswer:
        return
    one, other = (verify("math", [Case("", f"<answer>{text}</answer>", text)])[0] for _ in range(2))
    assert one == other


def test_no_computer_algebra_is_imported() -> None:
    """A process of the verifier is replaced in milliseconds, and no text reaches a library that would evaluate it."""
    import subprocess

    code = (
        "import sys; from lpo_ray.verifiers.mathematics.verifier import math;"
        r"assert math(r'\boxed{(x+1)^2}', 'x^2+2x+1').reward == 1;"
        r"assert math(r'\boxed{\sqrt{50}}', r'5\sqrt{2}').reward == 1;"
        "sys.exit('sympy' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
