"""Reasoning Gym: each generator's own scorer on the response's answer.

The row has ``dataset``, a generator's name, and ``entry``, what it generated: question, answer and metadata, as a
mapping or as JSON; and ``options``, those it was made with, if any: some scorers read them. The response's answer is
what stands in its last ``<answer>...</answer>``, or else all of it.

A scorer may raise on an answer of a form that it did not expect. Whose fault that is, its own right answer tells: a
scorer that takes it works, so the response is wrong.

Some scorers hand the answer to sympy's ``parse_expr`` or to ``eval``, which run any Python that is in it: a response
could read files, start programs, or give itself the reward. They get arithmetic and literals only; ``refused_answer``
says why an answer is not given to its scorer.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

from lpo_ray.verdict import BadAnswer, Verdict
from lpo_ray.verifiers.calling.cpu_budget import OutOfTime, cpu_budget
from lpo_ray.verifiers.mathematics.bounds import refused
from lpo_ray.verifiers.tags import answered

if TYPE_CHECKING:
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.dataset import ProceduralDataset

MAX_CHARACTERS = 2000
"""length of an answer, or twice as many as the right one has; longer ones are wrong"""
TUPLES = ("arc_agi", "rearc")
"""generators whose scorers compare with tuples, which are lists in JSON"""
SECONDS = 3.0
"""processor time of one call of a scorer"""
ARITHMETIC = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
"""generators whose scorers call parse_expr"""
LITERAL = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
"""generators whose scorers call eval, for an answer that is a list"""
FUNCTIONS = frozenset(
    {
        "Abs", "abs", "acos", "acosh", "acot", "asin", "asinh", "atan", "atanh", "cos", "cosh", "cot", "csc", "erf",
        "exp", "ln", "log", "pi", "sec", "sin", "sinh", "sqrt", "tan", "tanh",
    }
)  # fmt: skip
"""names of more than one letter that arithmetic may have"""

_ARITHMETIC = re.compile(r"[0-9A-Za-z_+\-*/^().,\s]*")
_LITERAL = re.compile(r"[\w\s,.\-'\"\[\]]*")
_NAME = re.compile(r"[A-Za-z_]\w*")
_ATTRIBUTE = re.compile(r"\.\s*[A-Za-z_]|__[a-zA-Z]")
_NO_NUMBER = re.compile(r"(?<![A-Za-z])(?:nan|inf|infinity)(?:[ij]|(?![A-Za-z]))", re.IGNORECASE)
_REPEATED_MOVE = re.compile(r"\d{3}")
_LARGE_EXPONENT = re.compile(r"[0-9.][eE][+-]?[0-9_]{4,}")

Scorer = Callable[[str | None, dict[str, Any]], float]


def reasoning_gym(response: str, row: Mapping[str, Any]) -> Verdict:
    """Score the answer with the generator's scorer: usually 0 to 1, in part also for what is almost right.

    Raises BadAnswer for a row without a dataset or an entry, and what the scorer raises on its own answer.
    """
    name, entry = wanted_entry(row)
    options = row.get("options") or {}
    scorer, given = _scorer(name, json.dumps(dict(options), sort_keys=True)), answered(response)
    right = entry["answer"]
    most = max(MAX_CHARACTERS, 2 * len(right or ""))
    if len(given) > most:
        return Verdict.scored(0.0, f"{len(given)} characters, at most {most} are looked at")
    source = entry.get("metadata", {}).get("source_dataset", name) if name == "composite" else name
    reason = refused_answer(source, given) if given != right else None
    if reason is not None:
        return Verdict.scored(0.0, reason)
    try:
        reward = _score(scorer, given, entry)
    except (OutOfTime, Exception) as error:  # noqa: BLE001 - scorers raise whatever they meet in an answer
        _score(scorer, right or "", entry)
        took_long = f"it took more than {SECONDS:g} s to score"
        return Verdict.scored(0.0, took_long if isinstance(error, OutOfTime) else f"{type(error).__name__}: {error}")
    return Verdict.scored(float(reward), f"by the scorer of {name}")


def refused_answer(generator: str, answer: str) -> str | None:
    """Say why ``answer`` is not given to the scorer of ``generator``; None when it may be."""
    if _LARGE_EXPONENT.search(answer):  # Fraction("1e999999999") is a number of as many digits
        return "a number with an exponent of more than 3 digits"
    if _NO_NUMBER.search(answer):  # min(1, exp(-nan)) is 1
        return "nan or inf, which some scorers take for right"
    if generator == "rubiks_cube" and _REPEATED_MOVE.search(answer):
        return "a move that is repeated 100 times or more"
    if generator in LITERAL and (not _LITERAL.fullmatch(answer) or _ATTRIBUTE.search(answer)):
        return f"more than a list of words and numbers, which the scorer of {generator} would run as code"
    if generator not in ARITHMETIC:
        return None
    names = set(_NAME.findall(re.sub(r"\d+(?:\.\d*)?[eE][+-]?\d+", "1", answer)))
    unknown = sorted(name for name in names if len(name) > 1 and name not in FUNCTIONS)
    if unknown or not _ARITHMETIC.fullmatch(answer) or _ATTRIBUTE.search(answer):
        what = f" ({unknown[0][:40]!r})" if unknown else ""
        return f"more than arithmetic{what}, which the scorer of {generator} would run as code"
    return refused(answer)


def _says_the_same(given: str | None, entry: dict[str, Any]) -> float:
    return float(given is not None and given.casefold() == str(entry["answer"]).casefold())


def _has_the_value(given: str | None, entry: dict[str, Any]) -> float:
    try:
        return float(abs(Fraction(given or "") - Fraction(str(entry["answer"]))) <= Fraction(1, 10_000))
    except (ValueError, ZeroDivisionError):
        return 0.0


CORRECTED: dict[str, Scorer] = {"coin_flip": _has_the_value, "game_of_life_halting": _says_the_same}
"""Scorers of our own, where that of version 0.1.25 gives the full reward to what is wrong: "0" for any probability that
begins with 0, and any text at all for True or False.
"""


def wanted_entry(row: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Read a row's generator and entry. Raises BadAnswer for a row without them."""
    name, entry = row.get("dataset"), row.get("entry")
    if isinstance(entry, str):
        entry = json.loads(entry)
        if name in TUPLES and isinstance(entry, dict):
            entry["metadata"] = _tuples(entry.get("metadata"))
    if not isinstance(name, str) or not isinstance(entry, Mapping) or "answer" not in entry:
        raise BadAnswer(
            f"the row of a Reasoning Gym task has dataset={name!r} and an entry of {type(entry).__name__}; expected a "
            "generator's name, and an entry with question, answer and metadata, as an object or as JSON"
        )
    return name, entry


def _tuples(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _score(scorer: Scorer, given: str | None, entry: Mapping[str, Any]) -> float:
    with cpu_budget(SECONDS):
        return float(scorer(given, copy.deepcopy(dict(entry))))


def made_dataset(name: str, options: Mapping[str, Any]) -> ProceduralDataset:
    """Make the library's dataset; ``options`` are fields of its configuration, those of ``composite`` with mappings of
    name, weight and config as its datasets. What the library raises it raises.
    """
    import reasoning_gym
    from reasoning_gym.composite import DatasetSpec

    if name == "composite":
        options = {**options, "datasets": [_part(DatasetSpec, part) for part in options.get("datasets", [])]}
    return reasoning_gym.create_dataset(name, **options)


def _part(spec: type[DatasetSpec], part: Mapping[str, Any]) -> DatasetSpec:
    return spec(part["name"], float(part.get("weight", 1.0)), dict(part.get("config", {})))


@cache
def _scorer(name: str, options: str) -> Scorer:
    if name in CORRECTED:
        return CORRECTED[name]
    return made_dataset(name, json.loads(options)).score_answer
