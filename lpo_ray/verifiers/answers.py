"""Readings of answers by each verifier: of a response, to vote with, and of the data set, before a run is begun.

Two responses have one answer when the verifier could not tell them apart. For ``countdown`` that is the expression (its
value is the target, or wrong). A verifier without a row here reads the whole response (programs, services, functions
from outside), and so does a vote on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lpo_ray.common.error_text import error_text
from lpo_ray.verdict import BadAnswer
from lpo_ray.verifiers.boxed import boxed_vote
from lpo_ray.verifiers.calling.call import judge_named
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.calling.weighted_sum import terms
from lpo_ray.verifiers.choice import choice_vote, wanted_choice
from lpo_ray.verifiers.countdown import expression_vote, wanted_problem
from lpo_ray.verifiers.exact import line_vote, wanted_lines, wanted_pattern
from lpo_ray.verifiers.geometry import geometry_vote, wanted_number
from lpo_ray.verifiers.mathematics.verifier import math_vote, wanted_answer
from lpo_ray.verifiers.reasoning_gym import wanted_entry
from lpo_ray.verifiers.table import VERIFIERS
from lpo_ray.verifiers.token_reversal import symbols_vote, wanted_symbols
from lpo_ray.verifiers.unit_tests.layouts import parsed_answer

Vote = Callable[[str, Mapping[str, Any], str], "str | None"]
"""response, row and prompt -> its answer; None when it gives none"""
Read = Callable[[str, Mapping[str, Any], Any], object]
"""answer of the data set, row, answer in its own type -> what the verifier makes of it. Raises BadAnswer when it can
make nothing of it
"""


def _of_response(vote: Callable[[str, str], str | None]) -> Vote:
    return lambda response, row, prompt: vote(response, prompt)


def _of_answer(read: Callable[[str], object]) -> Read:
    return lambda answer, row, raw_answer: read(answer)


ANSWERS: dict[str, Vote] = {
    "boxed": _of_response(boxed_vote),
    "countdown": _of_response(expression_vote),
    "countdown_strict": _of_response(expression_vote),
    "exact": _of_response(line_vote),
    "geometry": _of_response(geometry_vote),
    "math": _of_response(math_vote),
    "multiple_choice": choice_vote,
    "reasoning_gym": _of_response(line_vote),
    "regex": _of_response(line_vote),
    "token_reversal": _of_response(symbols_vote),
    "token_reversal_share": _of_response(symbols_vote),
}
"""verifier -> how it reads a response"""

WANTED: dict[str, Read] = {
    "boxed": _of_answer(wanted_answer),
    "countdown": _of_answer(wanted_problem),
    "countdown_strict": _of_answer(wanted_problem),
    "exact": lambda answer, row, raw_answer: wanted_lines(answer, raw_answer),
    "geometry": _of_answer(wanted_number),
    "math": _of_answer(wanted_answer),
    "multiple_choice": wanted_choice,
    "reasoning_gym": lambda answer, row, raw_answer: wanted_entry(row),
    "regex": _of_answer(wanted_pattern),
    "token_reversal": _of_answer(wanted_symbols),
    "token_reversal_share": _of_answer(wanted_symbols),
    "unit_tests": lambda answer, row, raw_answer: parsed_answer(answer, row),
}
"""verifier -> how it reads the answer of the data set: the function that its verdicts use"""


def answer_of(verifier: str, response: str, row: Mapping[str, Any], prompt: str = "") -> str | None:
    """Return the answer of ``response`` as the first verifier of the sum ``verifier`` that has a row in ANSWERS reads
    it. ``prompt``: its end tells whether the response begins inside the thinking.
    """
    read = ANSWERS.get(read_as(verifier))
    return response.strip() or None if read is None else read(response, row, prompt)


def read_as(verifier: str) -> str:
    """Return the row of ANSWERS for a sum of verifiers; "the whole response" when none of them has one."""
    return next((term.name for term in terms(verifier) if term.name in ANSWERS), "the whole response")


def check_answer(verifier: str, answer: str, row: Mapping[str, Any], raw_answer: Any = None) -> None:  # noqa: ANN401 - any JSON
    """Check that each of our verifiers in the sum ``verifier`` can read the answer. Raises BadAnswer naming it.

    A verifier without a row in WANTED judges an empty response. Functions and services from outside are not asked: what
    they do with an answer is theirs.
    """
    for name in (term.name for term in terms(verifier)):
        if name not in VERIFIERS:
            continue
        try:
            if name in WANTED:
                WANTED[name](answer, row, raw_answer)
            else:
                judge_named(name)([Case("", "", answer, row, raw_answer=raw_answer)])
        except Exception as error:  # whatever it raises for this answer, it would raise for every response
            said = str(error) if isinstance(error, BadAnswer) else error_text(error)
            raise BadAnswer(f"{name} cannot read it: {said}") from error
