from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.tasks.reasoning_gym import generators
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.call import verify
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.reasoning_gym import ARITHMETIC, LITERAL, made_dataset, refused_answer
from tests.support.hostile_answers import HOSTILE

COMPOSITE = {"datasets": [{"name": "countdown", "weight": 1}, {"name": "chain_sum", "weight": 1}]}
WITHOUT_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""which have no answer of their own to try"""
MALFORMED = {
    **HOSTILE,
    "None": "None",
    "minus": "-",
    "nan": "nan",
    "complex nan": "nan+nanj",
    "infinity": "-inf",
    "large float": "1e308",
    "large exponent": "1e999999999",
    "large number": "1000000000",
    "digits in bounds": "9" * 1900,
    "words": "I do not know",
    "dict": '{"a": [1, {"b": null}]}',
    "list of text": '["x", "y"]',
    "nested list": "[" * 300 + "]" * 300,
    "list bomb": "[0]*10**10",
    "lines": "\n" * 50 + "a\n\nb",
    "division": "1/0",
    "moves": "R U R' U'" * 50,
    "repeated move": "R999999999",
    "coordinates": "(0,0),(1,1)",
    "bits": "1 " * 900,
    "lambda": "(lambda: open('/tmp/lpo-ray-was-here', 'w'))()",
    "attribute": "().__class__.__base__.__subclasses__()",
    "eval": "eval('1')",
}


def entry(name: str, number: int = 0, **options: object) -> dict:
    return made_dataset(name, {"seed": 1, "size": number + 1, **options})[number]


def verdict(name: str, made: dict, response: str, **row: object) -> Verdict:
    return verify("reasoning_gym", [Case("", response, "", {"dataset": name, "entry": made, **row})])[0]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", ["chain_sum", "countdown", "gcd", "simple_equations", "word_sorting", "rotate_matrix"])
def test_right_and_wrong(name: str, as_json: bool) -> None:
    made = entry(name)
    given = json.dumps(made) if as_json else made
    assert verdict(name, given, made["answer"]).reward == 1.0
    assert verdict(name, given, f"I think <answer>\n{made['answer']} </answer> it is").reward == 1.0
    assert verdict(name, given, f"<answer>{made['answer']}</answer><answer>x</answer>").reward < 0.5
    assert verdict(name, given, "").reward < 0.5


def test_a_scorers_own_grades_are_kept() -> None:
    made = {"question": "", "answer": "42", "metadata": {}}
    assert verdict("gcd", made, "it is 42").reward == pytest.approx(2 / 8)


def test_options_that_a_scorer_reads() -> None:
    made = entry("composite", **COMPOSITE)
    assert verdict("composite", made, made["answer"], options=COMPOSITE).reward == 1.0
    assert not verdict("composite", made, made["answer"]).is_scored


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "dataset=None and an entry of NoneType"),
        ({"dataset": "gcd"}, "an entry of NoneType"),
        ({"dataset": "gcd", "entry": {"question": ""}}, "expected a generator's name"),
        ({"dataset": "gcd", "entry": "{"}, "JSONDecodeError"),
        ({"dataset": "no_such", "entry": {"answer": "1"}}, "no_such"),
    ],
)
def test_a_broken_row_is_unscored(row: dict, message: str) -> None:
    found = verify("reasoning_gym", [Case("", "1", "", row)])[0]
    assert found.reward is None
    assert message in found.detail


def test_whose_fault_an_exception_is() -> None:
    """The right answer is scored and only the response raises: wrong. It raises too: unscored."""
    made = entry("polynomial_equations")
    assert verdict("polynomial_equations", made, "surely not a number").is_scored
    broken = {**entry("rubiks_cube"), "metadata": None}
    assert not verdict("rubiks_cube", broken, "R U").is_scored


def test_what_the_library_gets_wrong() -> None:
    halting = {"question": "", "answer": "False", "metadata": {}}
    assert verdict("game_of_life_halting", halting, "anything").reward == 0.0
    assert verdict("game_of_life_halting", halting, "false").reward == 1.0
    coin = {"question": "", "answer": "0.3125", "metadata": {}}
    assert [verdict("coin_flip", coin, text).reward for text in ("0", "5/16", "0.31251", "x", "1/0")] == [0, 1, 1, 0, 0]
    made = entry("complex_arithmetic")
    assert verdict("complex_arithmetic", made, "nan").reward == 0.0


@pytest.mark.parametrize("name", sorted(ARITHMETIC | LITERAL))
@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').remove({!r})",
        "(lambda: __import__('os').remove({!r}))()",
        "exec('import os; os.remove({!r})')",
    ],
)
def test_no_response_is_run_as_code(name: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / "kept"
    file.touch()
    assert verdict(name, entry(name), code.format(str(file))).reward < 0.5
    assert verdict(name, entry(name), f"[{code.format(str(file))}]").reward < 0.5
    assert file.exists()


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("countdown", "(75 + 25)*3 - 4/2"),
        ("puzzle24", "(3+3)*4*1"),
        ("simple_integration", "x**4/4 - 3*x**2 + 2.5*x + C"),
        ("intermediate_integration", "-exp(2*x)*sin(3*x) + log(x)*sqrt(x**2 + 1) + C"),
        ("polynomial_multiplication", "3*x**2*y - 2*z + 1"),
        ("spiral_matrix", "[1, 2, 3]"),
        ("n_queens", "[['Q', '_'], ['_', 'Q']]"),
        ("string_insertion", "['A', 'B']"),
        ("base_conversion", "1e99"),
        ("word_sorting", "infant, Nancy"),
    ],
)
def test_what_answers_look_like_is_let_through(name: str, answer: str) -> None:
    assert refused_answer(name, answer) is None


@pytest.mark.parametrize("name", ["countdown", "gcd", "rubiks_cube", "n_queens", "intermediate_integration"])
def test_malformed_answers_are_wrong(name: str) -> None:
    _check_malformed(name, entry(name))


@given(st.text(max_size=100))
def test_any_text_gets_a_verdict(text: str) -> None:
    for name in ("countdown", "complex_arithmetic", "spiral_matrix"):
        assert verdict(name, _ENTRIES[name], text).is_scored


_ENTRIES = {name: entry(name) for name in ("countdown", "complex_arithmetic", "spiral_matrix")}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", generators())
def test_every_generator(name: str) -> None:
    """Its own answer is right, also through pickle and JSON; nothing malformed is, or takes long, or is unscored."""
    options = COMPOSITE if name == "composite" else {}
    made = pickle.loads(pickle.dumps(entry(name, **options)))
    if name not in WITHOUT_ANSWER:
        assert verdict(name, made, str(made["answer"]), options=options).reward == pytest.approx(1.0, abs=0.01)
        if name != "intermediate_integration" and name != "simple_integration":  # whose metadata is no JSON
            as_json = verdict(name, json.dumps(made), str(made["answer"]), options=options)
            assert as_json.reward == pytest.approx(1.0, abs=0.01)
    _check_malformed(name, made, **({"options": options} if options else {}))


def _check_malformed(name: str, made: dict, **row: object) -> None:
    for label, text in MALFORMED.items():
        started = time.process_time()
        found = verdict(name, made, f"<answer>{text}</answer>", **row)
        assert found.reward is not None, (label, found)
        right = text.strip() == made["answer"]
        assert right or -1.0 <= found.reward <= 0.7, (label, found)
        assert time.process_time() - started < 4, label
    assert not Path("/tmp/lpo-ray-was-here").exists()
