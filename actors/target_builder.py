"""The target builder as an actor: a thin shell around ``lpo_ray.targets``."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lpo_ray.records import Anchor, ScoredGroup, TargetGroup
from lpo_ray.targets import TargetRule, build_targets


class TargetBuilder:
    """Plain class; ``cluster.py`` makes it an actor."""

    def __init__(self, rule: TargetRule) -> None:
        self._rule = rule

    def start(self) -> int:
        """Returns the process id."""
        return os.getpid()

    def build(self, groups: Sequence[ScoredGroup], anchor: Anchor) -> list[TargetGroup]:
        """See interfaces.TargetBuilder."""
        return build_targets(groups, anchor, self._rule)
