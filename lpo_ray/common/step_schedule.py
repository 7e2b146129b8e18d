"""Values that change at given steps of a run, such as the divergence (objective.schedule)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepSchedule(Generic[T]):
    """A value for each step. ``changes``: (first step, value), ascending from step 0."""

    changes: tuple[tuple[int, T], ...]

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.changes]
        if not steps or steps[0] != 0 or any(later <= step for step, later in pairwise(steps)):
            raise ValueError(f"changes at steps {steps}; expected ascending steps that begin with 0")

    @classmethod
    def constant(cls, value: T) -> StepSchedule[T]:
        """Make a schedule that has the same value at every step."""
        return cls(((0, value),))

    def at(self, step: int) -> T:
        """Return the value for the step that follows ``step`` others."""
        return next(value for first, value in reversed(self.changes) if first <= step)
