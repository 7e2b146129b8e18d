"""The answer that a response gives, as the verifier reads it: what responses vote with, and what counts as distinct.

Two responses have one answer when the verifier could not tell them apart. For ``countdown`` that is the expression (its
value is the target, or wrong). A verifier without a row here reads the whole response (programs, services, functions
from outside), and so does a vote on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from lpo_ray.verifiers.boxed import last_box, normalised, number_of
from lpo_ray.verifiers.calling.weighted_sum import terms
from lpo_ray.verifiers.choice import named_choice
from lpo_ray.verifiers.geometry import number_in
from lpo_ray.verifiers.mathematics import verifier as maths
from lpo_ray.verifiers.tags import answered

Reading = Callable[[str, Mapping[str, Any]], "str | None"]
"""response and row -> its answer; None when it gives none"""


def _boxed(response: str, row: Mapping[str, Any]) -> str | None:
    content = last_box(response)
    if content is None:
        return None
    text = normalised(content)
    number = number_of(text)
    return text if number is None else _decimal(number)


def _countdown(response: str, row: Mapping[str, Any]) -> str | None:
    return "".join(answered(response).partition("=")[0].split()) or None


def _geometry(response: str, row: Mapping[str, Any]) -> str | None:
    content = last_box(response)
    value = None if content is None else number_in(content)
    return None if value is None else f"{value:.4g}"


def _math(response: str, row: Mapping[str, Any]) -> str | None:
    given = maths.given_answer(response)
    if given is None:
        return None
    found = maths.value_in(given)
    return maths.as_text(given) if found is None else _decimal(found[0])


def _decimal(value: Fraction | float) -> str:
    """Write integers as they are, others as far as verifiers compare them."""
    if Fraction(value).denominator == 1:
        return str(int(value))
    rounded = round(float(value), 6)
    if rounded.is_integer() and rounded:
        return str(int(rounded))
    return f"{rounded:.6f}" if abs(rounded) >= 0.1 else f"{float(value):.5g}"


def _one_line(response: str, row: Mapping[str, Any]) -> str | None:
    return " ".join(answered(response).split()) or None


def _symbols(response: str, row: Mapping[str, Any]) -> str | None:
    return "".join(response.split()) or None


def _whole(response: str, row: Mapping[str, Any]) -> str | None:
    return response.strip() or None


ANSWERS: dict[str, Reading] = {
    "boxed": _boxed,
    "countdown": _countdown,
    "countdown_strict": _countdown,
    "exact": _one_line,
    "geometry": _geometry,
    "math": _math,
    "multiple_choice": named_choice,
    "reasoning_gym": _one_line,
    "regex": _one_line,
    "token_reversal": _symbols,
    "token_reversal_share": _symbols,
}
"""verifier -> how it reads a response"""


def answer_of(verifier: str, response: str, row: Mapping[str, Any]) -> str | None:
    """Return the answer of ``response`` as the first verifier of the sum ``verifier`` that has a row in ANSWERS reads
    it.
    """
    return ANSWERS.get(read_as(verifier), _whole)(response, row)


def read_as(verifier: str) -> str:
    """Return the row of ANSWERS for a sum of verifiers; "the whole response" when none of them has one."""
    return next((term.name for term in terms(verifier) if term.name in ANSWERS), "the whole response")
