"""The target builder as an actor, and the component over it: a thin shell around ``lpo_ray.learner.targets``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from actors.control.log_shipping import ship_log
from actors.runtime.inspection import current_process
from actors.runtime.start_watch import Startable
from actors.runtime.supervised import RestartableActor
from lpo_ray import interfaces
from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.learner.targets import TargetRule, Targets, check_anchor, compute_targets, numbers_of, with_targets
from lpo_ray.records import Anchor, BusyWorker, FloatArray, Process, ScoredGroup, TargetGroup

BUILD_SECONDS = 120.0
"""for the targets of one step"""


class TargetBuilder(Startable):
    """Builder of targets: a plain class that ``roles.py`` makes an actor."""

    def __init__(self, rule: StepSchedule[TargetRule]) -> None:
        self._rule = rule

    def start(self) -> Process:
        """Return where it runs."""
        ship_log("target", "target builder")
        return current_process()

    def build(self, rewards: Sequence[FloatArray], anchor: Sequence[FloatArray], step: int) -> Targets:
        """Compute the targets of one step, whose groups have these rewards and s_t, [K] each."""
        return compute_targets(rewards, anchor, self._rule.at(step))


@dataclass(slots=True)
class RemoteTargetBuilder(interfaces.TargetBuilder):
    """TargetBuilder over its actor, which is replaced when it dies, and then asked again."""

    builder: RestartableActor[TargetBuilder]

    @override
    async def build(self, groups: Sequence[ScoredGroup], anchor: Anchor, step: int) -> list[TargetGroup]:
        # The groups stay here: their responses decide nothing.
        check_anchor(groups, anchor)
        numbers = numbers_of(groups, anchor)
        found = await self.builder.call(lambda actor: actor.build.remote(*numbers, step), "build", BUILD_SECONDS)
        return with_targets(groups, anchor, found)

    def busy(self) -> list[BusyWorker]:
        """Return the builder as the one at work, without asking whether it is."""
        return [BusyWorker(self.builder.name, "builds targets", None, self.builder.process)]
