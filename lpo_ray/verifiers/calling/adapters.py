"""Reward functions as other systems write them, taken as they are: which style one has is seen from its parameters.

====================  =============================================================================================
ours                  ``f(prompt, response, answer)``, or any of Case's names -> Verdict, number, bool or None
TRL                   ``f(completions, prompts, **columns) -> [number or None, ...]``
verl                  ``f(data_source, solution_str, ground_truth, extra_info) -> number or {"score": number, ...}``
verl, batch           ``f(data_sources, solution_strs, ground_truths, extra_infos) -> [as above, ...]``
OpenRLHF              ``f(queries, prompts, labels) -> {"rewards": [...]}`` or a list or tensor of numbers
verifiers             ``f()`` that makes a Rubric, or an environment with one, such as its ``load_environment``
====================  =============================================================================================

Each sees what it would see at home: the whole group where it takes lists, values in their own types, and text decoded
as there (``Sampled``). A column is named as in the data set. Where prompts are messages, completions are messages too,
as in TRL and verifiers. None, NaN and a missing number mean that there is no verdict: the response is unscored. Of a
TRL function they mean that it does not apply: in a sum the others decide.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from lpo_ray.common.plugins import UnknownName
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.calling.rubric import parts_of, rubric_verdicts
from lpo_ray.verifiers.calling.values import LONGEST_DETAIL, called, verdict_of, verdicts_of

_FIELDS = tuple(field.name for field in fields(Case) if field.name != "sampled")
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Judge:
    """Reward function of any style as one of ours: a function from the responses to one prompt to their verdicts."""

    function: Callable[[Sequence[Case]], list[Verdict]]
    whole_group: bool
    """whether it must be given all responses of a group at once, since it sees them as a list"""

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """Return a verdict of each case, in order. Raises what the user's function raises."""
        return self.function(cases)


def adapt(found: Any, name: str) -> Judge:  # noqa: ANN401 - whatever a user's module holds
    """Turn ``found`` into a function of cases. Raises UnknownName when no style fits."""
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError) as error:
        raise UnknownName(f"task.verifier is {name!r}, whose parameters cannot be read: {error}") from error
    if not any(p.default is p.empty and p.kind not in _MANY for p in parameters.values()):
        return _of_rubric(found(), name)
    if "completions" in parameters:
        return Judge(lambda cases: _trl(found, cases), whole_group=True)
    if "solution_strs" in parameters:
        return Judge(lambda cases: _verl_batch(found, cases), whole_group=True)
    if "solution_str" in parameters:
        return _each(lambda case: verdict_of(called(found, _verl(case))))
    if "queries" in parameters and "labels" in parameters:
        return Judge(lambda cases: _openrlhf(found, cases), whole_group=True)
    if set(parameters) <= set(_FIELDS):
        return _each(lambda case: verdict_of(found(**{key: copy.deepcopy(getattr(case, key)) for key in parameters})))
    if len(parameters) == 3:
        return _each(lambda case: verdict_of(found(case.prompt, case.response, case.answer)))
    raise UnknownName(
        f"task.verifier is {name!r}, a function of {', '.join(parameters)}; expected parameters among "
        f"{', '.join(_FIELDS)}, or those of a reward function of TRL (completions), verl (solution_str, or "
        "solution_strs in a batch) or OpenRLHF (queries, prompts, labels)"
    )


def _each(judge: Callable[[Case], Verdict]) -> Judge:
    return Judge(lambda cases: [judge(case) for case in cases], whole_group=False)


def _is_chat(case: Case) -> bool:
    return isinstance(case.row.get("prompt"), list)


def _completion(case: Case) -> Any:  # noqa: ANN401 - a text or messages
    return [{"role": "assistant", "content": case.plain_response}] if _is_chat(case) else case.plain_response


def _trl(function: Callable[..., Any], cases: Sequence[Case]) -> list[Verdict]:
    """Call it as TRL's GRPOTrainer does: by keyword, each column a list as long as the completions.

    What it logs goes into the verdicts' details.
    """
    logged = _Logged(len(cases))
    step = max((case.sampled.step for case in cases if case.sampled), default=0)
    each = [case.columns for case in cases]
    given = {
        **{key: [columns.get(key) for columns in each] for key in each[0]},
        "prompts": [case.raw_prompt for case in cases],
        "completions": [_completion(case) for case in cases],
        "completion_ids": [list(case.sampled.token_ids) if case.sampled else [] for case in cases],
        "trainer_state": SimpleNamespace(global_step=step),
        "log_extra": logged.extra,
        "log_metric": logged.metric,
    }
    verdicts = verdicts_of(called(function, given), len(cases), _trl_verdict)
    return [logged.into(verdict, number) for number, verdict in enumerate(verdicts)]


def _trl_verdict(value: Any) -> Verdict:  # noqa: ANN401 - as verdict_of
    """Turn what a TRL function returns for one response into a verdict: None and NaN mean that it does not apply."""
    if value is None or value != value:
        return Verdict.abstained("the function returned None for it")
    return verdict_of(value)


class _Logged:
    """Log of a TRL function about one group: values for all, and a column with a value for each."""

    def __init__(self, size: int) -> None:
        self._metrics: list[str] = []
        self._columns: list[list[str]] = [[] for _ in range(size)]

    def metric(self, name: str, value: float) -> None:
        self._metrics.append(f"{name} {float(value):g}")

    def extra(self, column: str, values: Sequence[Any]) -> None:
        for place, value in zip(self._columns, values, strict=False):
            place.append(f"{column} {value}")

    def into(self, verdict: Verdict, number: int) -> Verdict:
        """Return ``verdict`` with what was logged beside it."""
        said = "; ".join([*self._columns[number], *self._metrics])
        if verdict.reward is None or not said:
            return verdict
        return Verdict.scored(verdict.reward, "; ".join(filter(None, (verdict.detail, said)))[:LONGEST_DETAIL])


def _verl(case: Case) -> dict[str, Any]:
    extra = case.row.get("extra_info")
    return {
        "data_source": case.row.get("data_source", ""),
        "solution_str": case.plain_response,
        "ground_truth": case.gold,
        "extra_info": copy.deepcopy(dict(extra)) if isinstance(extra, Mapping) else {},
    }


def _verl_batch(function: Callable[..., Any], cases: Sequence[Case]) -> list[Verdict]:
    """Call it as verl's batch reward manager does."""
    each = [_verl(case) for case in cases]
    names = {
        "data_sources": "data_source", "solution_strs": "solution_str", "ground_truths": "ground_truth",
        "extra_infos": "extra_info",
    }  # fmt: skip
    given = {plural: [values[one] for values in each] for plural, one in names.items()}
    return verdicts_of(called(function, given), len(cases))


def _openrlhf(function: Callable[..., Any], cases: Sequence[Case]) -> list[Verdict]:
    given = {
        "queries": [case.prompt + case.response if case.sampled is None else case.sampled.query for case in cases],
        "prompts": [case.prompt if case.sampled is None else case.sampled.prompt for case in cases],
        "labels": [case.gold for case in cases],
    }
    answer = called(function, given)
    return verdicts_of(answer.get("rewards") if isinstance(answer, Mapping) else answer, len(cases))


def _of_rubric(made: Any, name: str) -> Judge:  # noqa: ANN401 - verifiers is not a package we need
    """Return the verifier that an environment's rubric is, or ``made`` itself is one."""
    found = parts_of(getattr(made, "rubric", made))
    if not found:
        raise UnknownName(
            f"task.verifier is {name!r}, which makes a {type(made).__name__}; expected a function of a response, or "
            "one that makes a Rubric of verifiers or an environment with one"
        )
    return Judge(lambda cases: rubric_verdicts(found, cases), whole_group=any(part.of_group for part in found))
