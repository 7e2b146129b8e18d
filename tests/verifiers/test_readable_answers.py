"""Answers that a verifier cannot read, as public data sets have them: found by the verifier's own reading."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lpo_ray.verdict import BadAnswer
from lpo_ray.verifiers import answers
from lpo_ray.verifiers.answers import check_answer
from lpo_ray.verifiers.calling.call import verify
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.table import VERIFIERS

FOUR = {"choices": ["a", "b", "c", "d"]}
BAD: list[tuple[str, str, dict[str, Any]]] = [
    ("math", "", {}), ("math", "x ####", {}), ("boxed", "", {}), ("boxed", "  ", {}), ("exact", "", {}),
    ("geometry", "cannot be determined", {}), ("geometry", "", {}), ("multiple_choice", "E", FOUR),
    ("multiple_choice", "", FOUR), ("unit_tests", "{'inputs': 5}", {}),
    ("unit_tests", '{"inputs": [], "outputs": []}', {}), ("unit_tests", "", {}),
    ("unit_tests", '{"inputs": ["1"], "outputs": []}', {}), ("regex", "(", {}),
    ("countdown", "{}", {}), ("countdown", '{"numbers": 3, "target": 1}', {}), ("countdown", "7", {}),
    ("token_reversal", " ", {}), ("reasoning_gym", "", {}), ("reasoning_gym", "", {"dataset": "gcd", "entry": "{"}),
]  # fmt: skip
GOOD: list[tuple[str, str, dict[str, Any]]] = [
    ("math", "7", {}), ("math", "so #### 7", {}), ("boxed", r"\boxed{7}", {}), ("exact", "Oslo", {}),
    ("regex", "a+", {}),
    ("geometry", r"2\sqrt{3}", {}), ("multiple_choice", "D", FOUR), ("unit_tests", '["assert f(1) == 2"]', {}),
    ("countdown", '{"numbers": [3, 4], "target": 7}', {}), ("token_reversal", "a b", {}), ("think_format", "", {}),
    ("reasoning_gym", "", {"dataset": "gcd", "entry": {"answer": "3"}}), ("my.module:reward", "", {}),
    ("judge", "", {}),
    ("https://h/score", "", {}), ("not_truncated", "", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer", "row"), BAD)
def test_what_cannot_be_read_is_said_and_would_score_nobody(name: str, answer: str, row: dict[str, Any]) -> None:
    for sum_of in (name, f"0.5*{name} + not_truncated", f"not_truncated + {name}"):
        with pytest.raises(BadAnswer, match=f"{name} cannot read it: "):
            check_answer(sum_of, answer, row)
    if name not in answers.WANTED:
        assert verify(name, [Case("p", r"\boxed{1}", answer, row)])[0].lack == "unscored"


@pytest.mark.parametrize(("name", "answer", "row"), GOOD)
def test_what_can_be_read_and_what_is_not_ours_passes(name: str, answer: str, row: dict[str, Any]) -> None:
    check_answer(name, answer, row)


def test_every_verifier_of_the_table_is_asked_about_an_answer() -> None:
    tried = {name for name, _, _ in (*BAD, *GOOD)}
    assert set(VERIFIERS) - tried == {"boxed_format", "countdown_strict", "token_reversal_share"}


def test_no_program_is_run_to_read_tests() -> None:
    check_answer("unit_tests", json.dumps({"tests": ["assert f(__import__('os')._exit(3)) == 1"]}), {})


def test_an_index_of_numeric_choices_is_no_text_of_one() -> None:
    choices = {"choices": ["1", "2", "3", "0"]}
    for said, reward in (("C", 1.0), ("B", 0.0)):
        assert verify("multiple_choice", [Case("", said, "2", choices, raw_answer=2)])[0].reward == reward
    assert verify("multiple_choice", [Case("", "B", "2", choices, raw_answer="2")])[0].reward == 1.0
    labelled = {"choices": {"text": ["x", "y"], "label": ["1", "2"]}}
    assert verify("multiple_choice", [Case("", "The answer is 2", "2", labelled, raw_answer=2)])[0].reward == 1.0


@pytest.mark.parametrize(
    ("response", "raw_answer", "reward"),
    [("True", True, 1.0), ("true", True, 1.0), ("False", True, 0.0), ("true", "True", 0.0), ("b", ["a", "b"], 1.0)],
)
def test_booleans_and_lists_of_answers_are_exact(response: str, raw_answer: object, reward: float) -> None:
    assert verify("exact", [Case("", response, str(raw_answer), raw_answer=raw_answer)])[0].reward == reward
    with pytest.raises(BadAnswer, match="expected a text"):
        check_answer("exact", "{}", {}, {"aliases": ["Ada"]})
