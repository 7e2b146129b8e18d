"""Reward functions as other systems write them, taken as they are: which style one has is seen from its parameters.

====================  =============================================================================================
ours                  ``f(prompt, response, answer)``, or any of Case's names -> Verdict, number, bool or None
TRL                   ``f(completions, prompts, **columns) -> [number or None, ...]``
verl                  ``f(data_source, solution_str, ground_truth, extra_info) -> number or {"score": number, ...}``
OpenRLHF              ``f(queries, prompts, labels) -> {"rewards": [...]}`` or a list or tensor of numbers
verifiers             ``f()`` that makes a Rubric, or an environment with one, such as its ``load_environment``
====================  =============================================================================================

A column is named as in the dataset. Where prompts are messages, completions are messages too, as in TRL and verifiers.
None, NaN and a missing number mean that there is no verdict: the response is unscored.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from numbers import Real
from typing import Any

from lpo_ray.common.plugins import UnknownName
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.case import Case

Judge = Callable[[Sequence[Case]], "list[Verdict]"]
"""what every style becomes: verdicts of responses to one prompt"""

_FIELDS = tuple(field.name for field in fields(Case))
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def adapt(found: Any, name: str) -> Judge:  # noqa: ANN401 - whatever a user's module holds
    """Turn ``found`` into a function of cases. Raises UnknownName when no style fits."""
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError) as error:
        raise UnknownName(f"task.verifier is {name!r}, whose parameters cannot be read: {error}") from error
    if not any(p.default is p.empty and p.kind not in _MANY for p in parameters.values()):
        return _of_rubric(found(), name)
    if "completions" in parameters:
        return lambda cases: _trl(found, cases)
    if "solution_str" in parameters:
        return lambda cases: [_verl(found, case) for case in cases]
    if "queries" in parameters and "labels" in parameters:
        return lambda cases: _openrlhf(found, cases)
    if set(parameters) <= set(_FIELDS):
        return lambda cases: [verdict_of(found(**{key: getattr(case, key) for key in parameters})) for case in cases]
    if len(parameters) == 3:
        return lambda cases: [verdict_of(found(case.prompt, case.response, case.answer)) for case in cases]
    raise UnknownName(
        f"task.verifier is {name!r}, a function of {', '.join(parameters)}; expected parameters among "
        f"{', '.join(_FIELDS)}, or those of a reward function of TRL (completions), verl (solution_str) or OpenRLHF "
        "(queries, prompts, labels)"
    )


def verdict_of(value: Any) -> Verdict:  # noqa: ANN401 - whatever a verifier returns
    """Turn a verdict, a number (also of numpy or of one element of torch), or None into a Verdict."""
    if isinstance(value, Verdict):
        return value
    if value is None:
        return Verdict.unscored("the verifier returned None")
    if isinstance(value, Mapping):
        if "score" not in value:
            return Verdict.unscored(f"the verifier returned a mapping of {', '.join(map(str, value))}, without score")
        verdict = verdict_of(value["score"])
        rest = {key: item for key, item in value.items() if key != "score"}
        return Verdict.scored(verdict.reward, str(rest)[:500]) if verdict.reward is not None and rest else verdict
    if not isinstance(value, Real) and hasattr(value, "item"):  # an array or tensor of one number
        value = value.item()
    if not isinstance(value, Real):
        return Verdict.unscored(f"the verifier returned {type(value).__name__}, expected a Verdict or a number")
    if not math.isfinite(float(value)):
        return Verdict.unscored(f"the verifier returned {value}, expected a finite number")
    return Verdict.scored(float(value))


def _verdicts_of(values: Any, cases: Sequence[Case]) -> list[Verdict]:  # noqa: ANN401 - as verdict_of
    rewards = list(values) if values is not None else []
    if len(rewards) != len(cases):
        return [Verdict.unscored(f"the verifier returned {len(rewards)} rewards of {len(cases)} responses")] * len(
            cases
        )
    return [verdict_of(reward) for reward in rewards]


def _is_chat(case: Case) -> bool:
    return isinstance(case.row.get("prompt"), list)


def _prompt(case: Case) -> Any:  # noqa: ANN401 - a text or messages
    return case.row["prompt"] if _is_chat(case) else case.prompt


def _completion(case: Case) -> Any:  # noqa: ANN401 - a text or messages
    return [{"role": "assistant", "content": case.response}] if _is_chat(case) else case.response


def _columns(case: Case) -> dict[str, Any]:
    """Return the columns of the row under their own names, and the answer under each name it is looked for."""
    return {"answer": case.answer, **{key: value for key, value in case.row.items() if key != "prompt"}}


def _trl(function: Callable[..., Any], cases: Sequence[Case]) -> list[Verdict]:
    """Call it as TRL's GRPOTrainer does: by keyword, each column a list as long as the completions."""
    columns = {key: [_columns(case).get(key) for case in cases] for key in _columns(cases[0])}
    given = {
        **columns,
        "prompts": [_prompt(case) for case in cases],
        "completions": [_completion(case) for case in cases],
        "completion_ids": None,
        "trainer_state": None,
    }
    return _verdicts_of(_called(function, given), cases)


def _verl(function: Callable[..., Any], case: Case) -> Verdict:
    extra = case.row.get("extra_info")
    given = {
        "data_source": case.row.get("data_source", ""),
        "solution_str": case.response,
        "ground_truth": case.answer,
        "extra_info": dict(extra) if isinstance(extra, Mapping) else {},
    }
    return verdict_of(_called(function, given))


def _openrlhf(function: Callable[..., Any], cases: Sequence[Case]) -> list[Verdict]:
    given = {
        "queries": [case.prompt + case.response for case in cases],
        "prompts": [case.prompt for case in cases],
        "labels": [case.answer for case in cases],
    }
    answer = _called(function, given)
    return _verdicts_of(answer.get("rewards") if isinstance(answer, Mapping) else answer, cases)


def _of_rubric(made: Any, name: str) -> Judge:  # noqa: ANN401 - verifiers is not a package we need
    """Return the verifier that an environment's rubric is, or ``made`` itself is one."""
    rubric = getattr(made, "rubric", made)
    found = _parts(rubric)
    if not found:
        raise UnknownName(
            f"task.verifier is {name!r}, which makes a {type(made).__name__}; expected a function of a response, or "
            "one that makes a Rubric of verifiers or an environment with one"
        )
    return lambda cases: [_rubric_verdict(found, case) for case in cases]


def _parts(rubric: Any) -> list[tuple[Any, float, dict[str, Any]]]:  # noqa: ANN401 - verifiers is not a package we need
    """List (function, weight, objects that it may name) of a Rubric or a group of them. Weight 0 is a metric only."""
    if hasattr(rubric, "rubrics"):
        return [part for one in rubric.rubrics for part in _parts(one)]
    objects = {"parser": getattr(rubric, "parser", None), **getattr(rubric, "class_objects", {})}
    pairs = zip(getattr(rubric, "funcs", ()), getattr(rubric, "weights", ()), strict=True)
    return [(function, weight, objects) for function, weight in pairs if weight]


def _rubric_verdict(parts: Sequence[tuple[Any, float, dict[str, Any]]], case: Case) -> Verdict:
    """Return the weighted sum of a Rubric's functions, each asked for what it names."""
    info, prompt = case.row.get("info", {}), _prompt(case)
    completion = [{"role": "assistant", "content": case.response}]
    given = {
        **_columns(case),
        "prompt": prompt,
        "completion": completion,
        "state": {"prompt": prompt, "completion": completion, "answer": case.answer, "info": info},
        "info": info,
        "task": case.row.get("task", "default"),
    }
    total = 0.0
    for function, weight, objects in parts:
        verdict = verdict_of(_called(function, {**given, **objects}))
        if verdict.reward is None:
            return Verdict.unscored(f"{getattr(function, '__name__', function)}: {verdict.detail}")
        total += weight * verdict.reward
    return Verdict.scored(total)


def _called(function: Callable[..., Any], given: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a user's function
    """Call ``function`` with what it names of ``given``, or with all of it when it takes any keyword; await it if need
    be.
    """
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    value = function(**{key: v for key, v in given.items() if takes_all or key in parameters})
    return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


async def _awaited(value: Any) -> Any:  # noqa: ANN401 - as _called
    return await value
