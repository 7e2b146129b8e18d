"""Where a step's updates brought the policy: some of its groups are scored again, without gradient, when they are done.

The log-ratio that the learner reports of a group is of before the group's own update, so from it nobody can tell
whether P moved to w*. These forwards can; they change nothing, and cost one for each measured group (two where the
behaviour is the policy before the step, whose log-probs are taken first).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lpo_ray.interfaces import Learner
from lpo_ray.records import AfterGroup, FloatArray, Key, ScoringItem, TargetGroup


@dataclass(frozen=True, slots=True)
class MeasureRule:
    """Which groups, and what their log-ratios are to."""

    num_groups: int
    """of a step; 0: none is measured"""
    tokens: int
    """of a forward, at most, unless one response is longer"""
    temperature: float
    """of the sampling distribution"""
    length_norm: str
    behaviour_from_engine: bool


NOTHING = MeasureRule(0, 1, 1.0, "mean", behaviour_from_engine=True)


class Measurement:
    """Of one step: make it before the updates, ask for ``after`` when they are done."""

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
        """How the policy as it is now sees the groups."""
        found = {}
        for target, logprobs, behaviour in zip(self._targets, await self._logprobs(), self._behaviour, strict=True):
            deltas = tuple(now - then for now, then in zip(logprobs, behaviour, strict=True))
            reduce = np.sum if self._rule.length_norm == "sum" else np.mean
            log_ratio = np.array([reduce(delta, dtype=np.float64) for delta in deltas], dtype=np.float32)
            found[target.group.key] = AfterGroup(log_ratio, deltas)
        return found

    async def _logprobs(self) -> list[list[FloatArray]]:
        """Of each response's tokens, group by group; as many responses in a forward as there is room for."""
        if not self._targets:
            return []
        forwards = _forwards(self._targets, self._rule.tokens)
        rows = iter(await self._learner.logprobs(forwards, self._rule.temperature))
        return [[next(rows) for _ in target.group.responses] for target in self._targets]


def _forwards(targets: Sequence[TargetGroup], tokens: int) -> list[list[ScoringItem]]:
    """Bundles of each forward. Every response counts with its prompt, also where the learner shares that."""
    forwards: list[list[ScoringItem]] = []
    room = 0
    for target in targets:
        prompt, before = target.group.prompt.token_ids, None
        for response in target.group.responses:
            size = len(prompt) + len(response.token_ids)
            if not forwards or size > room:
                forwards.append([])
                room, before = tokens, None
            if before is None:
                before = []
                forwards[-1].append((prompt, before))
            before.append(response.token_ids)
            room -= size
    return forwards
