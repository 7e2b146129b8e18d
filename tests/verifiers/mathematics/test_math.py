from __future__ import annotations

import threading
import time

import math_verify
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.verifiers.calling.call import verify
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.calling.cpu_budget import OutOfTime, cpu_budget
from lpo_ray.verifiers.mathematics import symbolic
from lpo_ray.verifiers.mathematics import verifier as maths
from lpo_ray.verifiers.mathematics.bounds import refused
from lpo_ray.verifiers.mathematics.verifier import math
from tests.support.hostile_answers import PLACED
from tests.support.math_table import MATRICES, OURS, SETS, TABLE, TEXTS, UNITS

LATEX = r"\frac \sqrt \pi { } ( ) [ ] ^ _ , = < > + - * / \cdot \pm \cup \in \infty \{ \} \% x y n e i 0 1 2 9 10 & \\ "
POWERS = "0 9 99 x e ( ) { } ^ ** ! \\frac{1}{2} \\exp( + * \\sqrt{2}"


@pytest.mark.parametrize(("response", "answer", "expected"), TABLE)
def test_the_table(response: str, answer: str, expected: int) -> None:
    assert math(response, answer).reward == expected


@pytest.mark.parametrize(("response", "answer", "expected"), OURS)
def test_where_math_verify_says_otherwise(response: str, answer: str, expected: int) -> None:
    gold, target = math_verify.parse(f"${answer}$"), math_verify.parse(response)
    assert math_verify.verify(gold, target) != bool(expected)


@pytest.mark.parametrize(("response", "answer", "expected"), [*SETS, *MATRICES, *TEXTS, *UNITS][::5])
def test_a_thread_without_a_timer_gives_the_same(response: str, answer: str, expected: int) -> None:
    maths._compared.cache_clear()
    found = []
    thread = threading.Thread(target=lambda: found.append(verify("math", [Case("", response, answer)])[0].reward))
    thread.start()
    thread.join()
    assert found == [expected]


@pytest.mark.parametrize("answer", ["42", r"\frac{x+1}{2}", r"[0,1)", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"])
@pytest.mark.parametrize("name", PLACED)
def test_hostile_responses_are_wrong_and_quick(name: str, answer: str) -> None:
    started = time.process_time()
    verdict = verify("math", [Case("", PLACED[name], answer)])[0]
    assert verdict.reward in (0.0, 1.0) if "digits" in name else verdict.reward == 0.0, verdict
    assert time.process_time() - started < 2 * symbolic.SECONDS


@pytest.mark.parametrize("answer", ["", "  ", "$$", r"\boxed{}"])
def test_an_empty_answer_is_unscored(answer: str) -> None:
    assert "expected one that is not empty" in verify("math", [Case("", r"\boxed{1}", answer)])[0].detail


@given(st.text(max_size=200))
def test_any_text_gets_a_verdict(text: str) -> None:
    for response in (text, f"\\boxed{{{text}}}", f"The answer is {text}"):
        assert verify("math", [Case("", response, r"\frac{x}{2}")])[0].is_scored


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from(LATEX.split(" ")), min_size=1, max_size=25), st.sampled_from(["x^2+1", "[0,1)", "(1,2)"])
)
def test_any_latex_gets_a_verdict_in_time(parts: list[str], answer: str) -> None:
    started = time.process_time()
    assert verify("math", [Case("", f"\\boxed{{{' '.join(parts)}}}", answer)])[0].is_scored
    assert time.process_time() - started < 3 * symbolic.SECONDS


@settings(max_examples=150)
@given(st.lists(st.sampled_from(POWERS.split(" ")), min_size=1, max_size=14))
def test_no_power_that_is_let_through_takes_long(parts: list[str]) -> None:
    text = "".join(parts)
    if refused(text) is None:
        started = time.process_time()
        assert isinstance(symbolic.equivalent(text, "x+1")[0], bool)
        assert time.process_time() - started < 3 * symbolic.SECONDS


@pytest.mark.parametrize(
    "text",
    ["2^{2023}-1", r"\left(\frac{3}{2}\right)^{2023}", "(x+1)^{10}", "e^{-x^2}", r"\binom{2024}{1012}", "100!",
     r"\frac{1}{2} \pm \frac{\sqrt{5}}{2}", "(a+b)^2(c+d)^2", "x^{n+1}", r"2^{\frac{1}{3}}", "2^{2023}+3^{2023}"],
)  # fmt: skip
def test_what_answers_look_like_is_let_through(text: str) -> None:
    assert refused(text) is None


def test_trouble_is_told_from_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that runs out on the dataset's answer, or on a short response, is unscored; on a long one it is wrong."""
    maths._compared.cache_clear()

    class Slow:
        LatexExtractionConfig = math_verify.LatexExtractionConfig
        parse = staticmethod(math_verify.parse)

        @staticmethod
        def verify(*arguments: object, **options: object) -> bool:
            raise OutOfTime

    monkeypatch.setattr(symbolic, "_library", lambda: Slow)
    shorter, longer = verify("math", [Case("", f"\\boxed{{{text}}}", "y+y^3") for text in ("z", "x+x^2+x^3")])
    assert shorter.reward is None
    assert "TimeoutError" in shorter.detail
    assert longer.reward == 0.0

    symbolic._read.cache_clear()
    monkeypatch.setattr(Slow, "parse", Slow.verify)
    assert verify("math", [Case("", r"\boxed{x+x^2+x^4}", "w+1")])[0].reward is None

    def broken() -> None:
        raise RuntimeError("reinstall it")

    monkeypatch.setattr(symbolic, "_library", broken)
    assert "reinstall it" in verify("math", [Case("", r"\boxed{x+x^2+x^5}", "u+1")])[0].detail
    symbolic._read.cache_clear()


def test_processor_time_is_limited_even_where_every_exception_is_swallowed() -> None:
    started, swallowed = time.process_time(), 0
    with pytest.raises(OutOfTime), cpu_budget(0.1):
        while time.process_time() - started < 5:
            try:
                while time.process_time() - started < 5:
                    pass
            except Exception:  # noqa: BLE001
                swallowed += 1
    assert swallowed == 0
    assert time.process_time() - started < 1
    time.sleep(0.3)  # the timer is off
