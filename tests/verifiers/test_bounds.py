from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy.parsing.sympy_parser import parse_expr

from lpo_ray.verifiers.bounds import refused
from lpo_ray.verifiers.calling.cpu_budget import OutOfTime, cpu_budget

POWERS = ["0", "9", "99", "x", "e", "(", ")", "**", "+", "*", "sqrt(", "exp("]


@settings(max_examples=100)
@given(st.lists(st.sampled_from(POWERS), min_size=1, max_size=14))
def test_no_power_that_is_let_through_takes_long(parts: list[str]) -> None:
    text = "".join(parts)
    if refused(text) is None:
        started = time.process_time()
        try:
            with cpu_budget(1.5):
                parse_expr(text)
        except (OutOfTime, Exception):  # noqa: BLE001 - most of these are no expressions
            pass
        assert time.process_time() - started < 4.5


@pytest.mark.parametrize(
    "text",
    ["2^{2023}-1", r"\left(\frac{3}{2}\right)^{2023}", "(x+1)^{10}", "e^{-x^2}", r"\binom{2024}{1012}", "100!",
     r"\frac{1}{2} \pm \frac{\sqrt{5}}{2}", "(a+b)^2(c+d)^2", "x^{n+1}", r"2^{\frac{1}{3}}", "2^{2023}+3^{2023}"],
)  # fmt: skip
def test_what_answers_look_like_is_let_through(text: str) -> None:
    assert refused(text) is None


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
