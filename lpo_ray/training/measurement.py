"""Measurement of where a step's updates moved the policy: some groups are scored again after them, without gradient.

The log-ratio that the learner reports of a group is from before the group's own update, so it cannot tell whether P
moved to w*. These forwards can. They change nothing, and cost one for each measured group (two where the behaviour is
the policy before the step, whose log-probs are taken first).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lpo_ray.interfaces import Learner
from lpo_ray.records import AfterGroup, FloatArray, Key, ScoringItem, TargetGroup


@dataclass(frozen=True, slots=True)
class MeasureRule:
    """Rule of which groups are measured, and against which behaviour."""

    num_groups: int
    """groups of a step; 0: none is measured"""
    tokens: int
    """limit of a forward, unless one response is longer"""
    temperature: float
    """temperature of the sampling distribution"""
    length_norm: str
    behaviour_from_engine: bool


NOTHING = MeasureRule(0, 1, 1.0, "mean", behaviour_from_engine=True)


class Measurement:
    """Measurement of one step. Make it before the updates, call ``before`` then and ``after`` when they are done."""

    def __init__(self, learner: Learner, targets: Sequence[TargetGroup], rule: MeasureRule) -> None:
        count = min(rule.num_groups, len(targets))
        self._targets = [targets[number * len(targets) // count] for number in range(count)]
        self._learner, self._rule = learner, rule
        self._behaviour: list[list[FloatArray]] = []

    async def before(self) -> None:
        """Take the log-probs of the behaviour: the engine's, or those of the policy as it is now."""
        if self._rule.behaviour_from_engine:
            self._behaviour = [[r.behaviour_logprobs for r in target.group.responses] for target in self._targets]
        else:
            self._behaviour = await self._logprobs()

    async def after(self) -> dict[Key, AfterGroup]:
        """Score the groups with the policy as it is now."""
        found = {}
        for target, logprobs, behaviour in zip(self._targets, await self._logprobs(), self._behaviour, strict=True):
            deltas = tuple(now - then for now, then in zip(logprobs, behaviour, strict=True))
            reduce = np.sum if self._rule.length_norm == "sum" else np.mean
            log_ratio = np.array([reduce(delta, dtype=np.float64) for delta in deltas], dtype=np.float32)
            found[target.group.key] = AfterGroup(log_ratio, deltas)
        return found

    async def _logprobs(self) -> list[list[FloatArray]]:
        """Log-probs of each response's tokens, group by group; as many responses in a forward as there is room for."""
        if not self._targets:
            return []
        forwards = _forwards(self._targets, self._rule.tokens)
        rows = iter(await self._learner.logprobs(forwards, self._rule.temperature))
        return [[next(rows) for _ in target.group.responses] for target in self._targets]


def _forwards(targets: Sequence[TargetGroup], tokens: int) -> list[list[ScoringItem]]:
    """Split the groups into forwards. Every response counts with its prompt, also where the learner shares that."""
    forwards: list[list[ScoringItem]] = []
    room = 0
    for target in targets:
        prompt, before = target.group.prompt.token_ids, None
        for response in target.group.responses:
            behind, beside = response.positions(prompt)
            size = behind * len(prompt) + beside
            if not forwards or size > room:
                forwards.append([])
                room, before = tokens, None
            if before is None:
                before = []
                forwards[-1].append((prompt, before))
            before.append(response.segments)
            room -= size
    return forwards
