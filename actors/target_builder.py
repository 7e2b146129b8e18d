"""The target builder as an actor: a thin shell around ``lpo_ray.targets``."""

from __future__ import annotations

from collections.abc import Sequence

from actors.inspection import current_process
from actors.worker_log import ship_log
from lpo_ray.records import Anchor, Process, ScoredGroup, TargetGroup
from lpo_ray.scheduled import Scheduled
from lpo_ray.targets import TargetRule, build_targets


class TargetBuilder:
    """Plain class; ``cluster.py`` makes it an actor."""

    def __init__(self, rule: Scheduled[TargetRule]) -> None:
        self._rule = rule

    def start(self) -> Process:
        """Returns where it runs."""
        ship_log("target", "target builder")
        return current_process()

    def build(self, groups: Sequence[ScoredGroup], anchor: Anchor, step: int) -> list[TargetGroup]:
        """See interfaces.TargetBuilder."""
        return build_targets(groups, anchor, self._rule.at(step))
