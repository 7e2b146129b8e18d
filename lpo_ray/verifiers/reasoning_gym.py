"""Reasoning Gym: each generator's own scorer on the response's answer.

The row has ``dataset``, a generator's name, and ``entry``, what it generated: question, answer and metadata, as a
mapping or as JSON; and ``options``, those it was made with, if any: some scorers read them. The response's answer is
what stands in its last ``<answer>...</answer>``, or else all of it.

A scorer may raise on an answer of a form that it did not expect. Whose fault that is, its own right answer tells: a
scorer that takes it works, so the response is wrong. Scorers that evaluate what they are given (sympy's parse_expr runs
any Python) get only arithmetic; see ``code_bounds``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.cpu_budget import OutOfTime, cpu_budget
from lpo_ray.verifiers.code_bounds import refused_answer
from lpo_ray.verifiers.tags import answered

if TYPE_CHECKING:
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.dataset import ProceduralDataset

MAX_CHARACTERS = 2000
"""of an answer, or twice as many as the right one has; longer ones are wrong"""
TUPLES = ("arc_agi", "rearc")
"""whose scorers compare with tuples, which are lists in JSON"""
SECONDS = 3.0
"""of processor time for one call of a scorer"""

Scorer = Callable[[str | None, dict[str, Any]], float]


def reasoning_gym(response: str, row: Mapping[str, Any]) -> Verdict:
    """What the generator's scorer says, usually 0 to 1, in part also for what is almost right.

    Raises ValueError for a row without a known dataset or an entry, and what the scorer raises on its own answer.
    """
    name, entry = _task(row)
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


def _task(row: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    name, entry = row.get("dataset"), row.get("entry")
    if isinstance(entry, str):
        entry = json.loads(entry)
        if name in TUPLES and isinstance(entry, dict):
            entry["metadata"] = _tuples(entry.get("metadata"))
    if not isinstance(name, str) or not isinstance(entry, Mapping) or "answer" not in entry:
        raise ValueError(
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
    """The library's dataset; ``options`` are fields of its configuration, those of ``composite`` with mappings of name,
    weight and config as its datasets. What the library raises it raises.
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
