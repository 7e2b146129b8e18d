"""The target builder as an actor: a thin shell around ``lpo_ray.learner.targets``."""

from __future__ import annotations

from collections.abc import Sequence

from actors.control.log_shipping import ship_log
from actors.runtime.inspection import current_process
from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.learner.targets import TargetRule, build_targets
from lpo_ray.records import Anchor, Process, ScoredGroup, TargetGroup


class TargetBuilder:
    """Plain class; ``cluster.py`` makes it an actor."""

    def __init__(self, rule: StepSchedule[TargetRule]) -> None:
        self._rule = rule

    def start(self) -> Process:
        """Returns where it runs."""
        ship_log("target", "target builder")
        return current_process()

    def build(self, groups: Sequence[ScoredGroup], anchor: Anchor, step: int) -> list[TargetGroup]:
        """See interfaces.TargetBuilder."""
        return build_targets(groups, anchor, self._rule.at(step))
