"""Rubrics of the library verifiers: the weighted sum of functions of one rollout, or of all rollouts of a group."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.calling.values import called, verdict_of, verdicts_of

_GROUP = frozenset({"states", "prompts", "completions", "answers", "tasks", "infos"})
"""parameters by which the library knows a function of a whole group"""


@dataclass(frozen=True, slots=True)
class Part:
    """A function of a Rubric. Weight 0 is a metric only."""

    function: Callable[..., Any]
    weight: float
    objects: Mapping[str, Any]
    """that it may name"""
    of_group: bool

    @property
    def name(self) -> str:
        """Name of the function, for messages."""
        return getattr(self.function, "__name__", str(self.function))


def parts_of(rubric: Any) -> list[Part]:  # noqa: ANN401 - verifiers is not a package we need
    """List the functions of a Rubric, or of a group of them, that count."""
    if hasattr(rubric, "rubrics"):
        return [part for one in rubric.rubrics for part in parts_of(one)]
    objects = {"parser": getattr(rubric, "parser", None), **getattr(rubric, "class_objects", {})}
    pairs = zip(getattr(rubric, "funcs", ()), getattr(rubric, "weights", ()), strict=True)
    return [Part(function, weight, objects, _is_of_group(function)) for function, weight in pairs if weight]


def _is_of_group(function: Callable[..., Any]) -> bool:
    """Tell whether verifiers calls it with all rollouts of a group: by its parameters, or as it returns a list."""
    signature = inspect.signature(function)
    returned = signature.return_annotation
    return bool(_GROUP & set(signature.parameters)) or returned is list or get_origin(returned) is list


def rubric_verdicts(parts: Sequence[Part], cases: Sequence[Case]) -> list[Verdict]:
    """Return the weighted sum of a Rubric's functions, each asked for what it names."""
    states = [_state(case) for case in cases]
    totals = [Verdict.scored(0.0)] * len(cases)
    for part in parts:
        if part.of_group:
            found = verdicts_of(called(part.function, {**_of_group(states), **part.objects}), len(cases))
        else:
            found = [verdict_of(called(part.function, {**state, **part.objects})) for state in states]
        totals = [_plus(total, part, verdict) for total, verdict in zip(totals, found, strict=True)]
    return totals


def _plus(total: Verdict, part: Part, verdict: Verdict) -> Verdict:
    if total.reward is None:
        return total
    if verdict.reward is None:
        return Verdict.unscored(f"{part.name}: {verdict.detail}")
    return Verdict.scored(total.reward + part.weight * verdict.reward)


def _state(case: Case) -> dict[str, Any]:
    """Return what a function of one rollout may name."""
    columns, prompt = case.columns, case.raw_prompt
    info = columns.get("info", {})
    completion = [{"role": "assistant", "content": case.plain_response}]
    return {
        **columns,
        "prompt": prompt,
        "completion": completion,
        "state": {"prompt": prompt, "completion": completion, "answer": case.gold, "info": info},
        "info": info,
        "task": case.row.get("task", "default"),
    }


def _of_group(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a function of all rollouts of a group may name."""
    names = ("prompt", "completion", "answer", "state", "task", "info")
    return {f"{name}s": [state[name] for state in states] for name in names}
