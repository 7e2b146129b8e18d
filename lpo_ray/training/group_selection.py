"""Which groups a step trains: fresh ones, without those that teach nothing or are too far off, and reused ones.

A GroupSelector is shown the groups of one step and returns a Selection each time: what the loop has to do in the sample
lane. Groups that are left out are replaced by others up to a budget. When it is spent the step is short, and its
denominators are those of the groups that it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lpo_ray.common.seeds import derive_seed
from lpo_ray.errors import NothingToTrain
from lpo_ray.learner.targets import StaleRule, why_dropped
from lpo_ray.records import Anchor, AnchorGroup, Key, ScoredGroup


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    """Settings of group selection: the groups that a step is made of."""

    groups_per_step: int
    max_staleness: int
    drop_equal_rewards: bool
    stale: StaleRule
    refill_groups: int
    """groups of a step that may be requested in place of others"""
    oversample_groups: int
    """groups in flight beyond those that a step needs; what is late when it has them is cut"""
    reused_groups_per_step: int
    behaviour_from_engine: bool
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Changes to the sample lane after the selector has seen some groups. Made by GroupSelector, applied by
    the loop.
    """

    released: Sequence[ScoredGroup] = ()
    """groups whose slots at the gate are freed, so that others can be sampled in their place"""
    filtered: Sequence[tuple[ScoredGroup, str]] = ()
    """groups that are left out for good, with the reason"""
    stale: Sequence[tuple[ScoredGroup, str]] = ()
    """groups whose prompts are issued again, with the reason"""
    requested: int = 0
    """groups to sample beyond those that were requested before"""


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
        """Anchor of each group, by the group's key."""
        return {scored.group.key: anchor for scored, anchor in zip(self.groups, self.anchor, strict=True)}

    @property
    def fresh(self) -> list[ScoredGroup]:
        """Groups that are trained for the first time."""
        return self.groups[: len(self.groups) - self.num_reused]

    @property
    def reused(self) -> list[ScoredGroup]:
        """Groups that were trained before."""
        return self.groups[len(self.groups) - self.num_reused :]

    def extended(self, reused: Sequence[tuple[ScoredGroup, AnchorGroup]], num_cut: int) -> StepGroups:
        """The same step with groups that are reused; ``num_cut``: stragglers that were cut."""
        groups = [*self.groups, *(scored for scored, _ in reused)]
        anchor = (*self.anchor, *(anchor for _, anchor in reused))
        return StepGroups(groups, anchor, len(reused), {**self.left_out, "cut": num_cut})


class Budget:
    """Number of groups that a step may still request in place of those that were left out."""

    def __init__(self, groups: int) -> None:
        self._left = groups

    def spend(self) -> bool:
        """Take one from the budget. Returns False when there is none left."""
        if not self._left:
            return False
        self._left -= 1
        return True


class GroupSelector:
    """Selection of the groups of one step, in rounds: groups are added until the round is full, then their anchors are
    judged. Groups that drop out there may be replaced in another round.
    """

    def __init__(self, step: int, settings: SelectionSettings) -> None:
        self._step, self._settings = step, settings
        self._budget = Budget(settings.refill_groups)
        self._round_size = settings.groups_per_step
        self._missing = settings.groups_per_step
        """groups that the round is still open for"""
        self._candidates: list[ScoredGroup] = []
        self._equal: list[ScoredGroup] = []
        """groups of the round that were set aside because their rewards are all equal"""
        self._kept: list[tuple[ScoredGroup, AnchorGroup]] = []
        self._num_equal = 0
        self._num_dropped = 0
        self._last_reason = ""

    @property
    def is_done(self) -> bool:
        """Whether no more groups are to be added, and all have been judged."""
        return self.is_round_full and not self._candidates

    @property
    def is_round_full(self) -> bool:
        """Whether the round takes no more groups, so that ``candidates`` can be judged."""
        return self._missing == 0

    @property
    def candidates(self) -> Sequence[ScoredGroup]:
        """Groups of the round that may be trained, in the order in which they were added."""
        return self._candidates

    def add(self, scored: ScoredGroup) -> Selection:
        """Take a group into the round, or set it aside because its rewards are all equal."""
        if not self._settings.drop_equal_rewards or np.ptp(scored.shaped) > 0:
            self._candidates.append(scored)
            self._missing -= 1
            return Selection(filtered=self._filtered_with_the_round())
        self._equal.append(scored)
        if self._budget.spend():
            return Selection(released=[scored], requested=1)
        self._missing -= 1
        return Selection(released=[scored], filtered=self._filtered_with_the_round())

    def judge(self, anchor: Anchor) -> Selection:
        """Keep those of ``candidates`` that are close enough to the policy. ``anchor``: theirs, in their order."""
        stale: list[tuple[ScoredGroup, str]] = []
        for scored, found in zip(self._candidates, anchor, strict=True):
            reason = reason_to_drop(found, self._settings)
            if reason is None:
                self._kept.append((scored, found))
                continue
            self._num_dropped += 1
            self._last_reason = reason
            stale.append((scored, reason))
            if self._budget.spend():
                self._missing += 1
        self._round_size = self._missing
        self._candidates = []
        return Selection(stale=stale)

    def step_groups(self) -> StepGroups:
        """The groups that were kept, none of them reused. Raises NothingToTrain when the stale rule left out all."""
        if not self._kept:
            raise NothingToTrain(self._step, self._num_dropped, self._last_reason)
        groups, anchor = zip(*sorted(self._kept, key=lambda pair: pair[0].group.key), strict=True)
        left_out = {"equal_rewards": self._num_equal, "off_policy": self._num_dropped, "cut": 0}
        return StepGroups(list(groups), anchor, 0, left_out)

    def _filtered_with_the_round(self) -> list[tuple[ScoredGroup, str]]:
        """Groups to filter once the round is full: those with equal rewards. A step that has no others trains those,
        which pull the policy back to the anchor.
        """
        if not self.is_round_full:
            return []
        equal = self._equal
        self._equal = []
        if not self._candidates and not self._kept:
            self._candidates = equal[: self._round_size]
            equal = equal[self._round_size :]
        self._num_equal += len(equal)
        return [(scored, "all rewards are equal") for scored in equal]


class ReusableGroups:
    """Groups that may be trained again: those of the last ``max_staleness`` steps."""

    def __init__(self, settings: SelectionSettings) -> None:
        self._settings = settings
        self._groups: list[ScoredGroup] = []

    def add(self, step: int, trained: Sequence[ScoredGroup]) -> None:
        """Remember groups that steps before ``step`` have trained; forget those that are too old for it."""
        if self._settings.reused_groups_per_step:
            oldest = step - self._settings.max_staleness
            self._groups = [s for s in (*self._groups, *trained) if s.group.oldest_version >= oldest]

    def draw(self, step: int) -> list[ScoredGroup]:
        """Draw groups to train again at ``step`` by (seed, step) from those that are fresh enough; in prompt order."""
        fresh = [s for s in self._groups if step - s.group.oldest_version <= self._settings.max_staleness]
        count = min(self._settings.reused_groups_per_step, len(fresh))
        rng = np.random.default_rng(derive_seed(self._settings.seed, "reuse", step))
        return sorted((fresh[n] for n in rng.choice(len(fresh), count, replace=False)), key=lambda s: s.group.key)


def reason_to_drop(anchor: AnchorGroup, settings: SelectionSettings) -> str | None:
    """Reason for which the stale rule leaves a group out, or None. It needs the engine's log-probs as behaviour."""
    return why_dropped(anchor, settings.stale) if settings.behaviour_from_engine else None
