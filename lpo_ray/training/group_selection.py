"""Which groups a step trains: fresh ones, without those that teach nothing or are too far off, and reused ones.

What is left out is replaced by groups that are asked for in its place, up to a budget; then the step is short, and its
denominators are those of the groups that it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lpo_ray.common.seeds import derive_seed
from lpo_ray.errors import NothingToTrain
from lpo_ray.interfaces import Observer
from lpo_ray.learner.targets import StaleRule, why_dropped
from lpo_ray.records import Anchor, AnchorGroup, Key, ScoredGroup, zero_anchor
from lpo_ray.training.sample_lane import SampleLane

LEFT_OUT = ("equal_rewards", "off_policy", "cut")


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    """What a step is made of."""

    groups_per_step: int
    max_staleness: int
    drop_equal_rewards: bool
    stale: StaleRule
    refill_groups: int
    """groups of a step that may be asked for in place of others"""
    oversample_groups: int
    """on their way beyond those that a step needs; what is late when it has them is cut"""
    reused_groups_per_step: int
    behaviour_from_engine: bool
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class StepGroups:
    """The groups of a step, and what was left out of it."""

    groups: list[ScoredGroup]
    """those that are trained for the first time, in prompt order, then those that are reused"""
    anchor: Anchor
    num_reused: int
    left_out: Mapping[str, int]
    """equal_rewards, off_policy (by the stale rule), cut (stragglers) -> groups"""

    @property
    def anchors(self) -> dict[Key, AnchorGroup]:
        """By the groups' names."""
        return {scored.group.key: anchor for scored, anchor in zip(self.groups, self.anchor, strict=True)}

    @property
    def fresh(self) -> list[ScoredGroup]:
        """Those that are trained for the first time."""
        return self.groups[: len(self.groups) - self.num_reused]

    @property
    def reused(self) -> list[ScoredGroup]:
        """Those that were trained before."""
        return self.groups[len(self.groups) - self.num_reused :]


class GroupSelector:
    """Consumes the sample lane's groups, produces those of a step. Owns the groups that may be reused: those of the
    last ``max_staleness`` steps.
    """

    def __init__(
        self,
        lane: SampleLane,
        log_ratios: Callable[[Sequence[ScoredGroup]], Awaitable[Anchor]],
        settings: SelectionSettings,
        observer: Observer,
        trained: Sequence[ScoredGroup],
    ) -> None:
        """``log_ratios``: see interfaces.Learner. ``trained``: what may be reused from before a resume."""
        self._lane, self._log_ratios, self._settings, self._observer = lane, log_ratios, settings, observer
        self._reusable = list(trained)

    async def groups(self, step: int) -> StepGroups:
        """The groups of ``step``, with their anchor. Waits for the sample lane. NothingToTrain when the stale rule left
        out all that there were.
        """
        settings, tally = self._settings, Counter[str]()
        kept: list[tuple[ScoredGroup, AnchorGroup]] = []
        missing, budget, reason = settings.groups_per_step, settings.refill_groups, ""
        while missing:
            found, equal, budget = await self._collect(step, missing, budget)
            if not found and not kept:
                # a step of nothing else trains those: they pull back to the anchor
                found, equal = equal[:missing], equal[missing:]
            for scored in equal:
                self._lane.filtered(scored, "all rewards are equal")
            tally["equal_rewards"], missing = tally["equal_rewards"] + len(equal), 0
            for scored, anchor in zip(found, await self._anchor(found), strict=True):
                if not (why := self._why_dropped(anchor)):
                    kept.append((scored, anchor))
                    continue
                tally["off_policy"], reason = tally["off_policy"] + 1, why
                self._lane.stale(scored, why)  # which asks for its prompt again
                if budget:
                    missing, budget = missing + 1, budget - 1
        if not kept:
            raise NothingToTrain(step, tally["off_policy"], reason)
        kept.sort(key=lambda pair: pair[0].group.key)
        if settings.oversample_groups:
            tally["cut"] = self._lane.cut(
                step + 1 - settings.max_staleness, f"late when step {step + 1} had its groups"
            )
            self._lane.want(tally["cut"])
        reused = await self._draw(step)
        groups, anchor = zip(*kept, *reused, strict=True)
        return StepGroups(list(groups), anchor, len(reused), {why: tally[why] for why in LEFT_OUT})

    def trained(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        """``step`` trained the groups; from now on they may be reused."""
        if self._settings.reused_groups_per_step:
            oldest = step + 1 - self._settings.max_staleness
            self._reusable = [s for s in (*self._reusable, *groups) if s.group.oldest_version >= oldest]

    async def _collect(self, step: int, count: int, budget: int) -> tuple[list[ScoredGroup], list[ScoredGroup], int]:
        """Up to ``count`` groups; those set aside because their rewards are all equal; what is left of the budget."""
        found: list[ScoredGroup] = []
        equal: list[ScoredGroup] = []
        while len(found) < count:
            scored = await self._lane.take_fresh(step, self._settings.max_staleness)
            if not self._settings.drop_equal_rewards or np.ptp(scored.rewards) > 0:
                found.append(scored)
                continue
            equal.append(scored)
            self._lane.release([scored])
            if budget:
                budget -= 1
                self._lane.want(1)
            else:
                count -= 1
        return found, equal, budget

    async def _anchor(self, groups: Sequence[ScoredGroup]) -> Anchor:
        """s_t. Zero by definition when the behaviour is the anchor itself: no forward is spent on it."""
        if self._settings.behaviour_from_engine and groups:
            with self._observer.stage("anchor"):
                return await self._log_ratios(groups)
        return zero_anchor(groups)

    def _why_dropped(self, anchor: AnchorGroup) -> str | None:
        return why_dropped(anchor, self._settings.stale) if self._settings.behaviour_from_engine else None

    async def _draw(self, step: int) -> list[tuple[ScoredGroup, AnchorGroup]]:
        """Groups to train again, drawn by (seed, step) from those that are fresh enough and not too far off."""
        fresh = [s for s in self._reusable if step - s.group.oldest_version <= self._settings.max_staleness]
        count = min(self._settings.reused_groups_per_step, len(fresh))
        if not count:
            return []
        rng = np.random.default_rng(derive_seed(self._settings.seed, "reuse", step))
        drawn = sorted((fresh[n] for n in rng.choice(len(fresh), count, replace=False)), key=lambda s: s.group.key)
        pairs = zip(drawn, await self._anchor(drawn), strict=True)
        return [(scored, anchor) for scored, anchor in pairs if not self._why_dropped(anchor)]
