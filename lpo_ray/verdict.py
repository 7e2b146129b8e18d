"""Verdict of a verifier on one response. Standard library only: verifier processes import it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real


class BadAnswer(ValueError):
    """Error of an answer that a verifier cannot read: the data set's fault, so nothing can be said of a response."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict: scored (a finite reward) or unscored (a reason). A check that failed is never a reward of 0.

    Example: ``Verdict.scored(0.1, "value 21, target 22")``, ``Verdict.unscored("no verdict within 10 s")``
    """

    reward: float | None
    detail: str

    def __post_init__(self) -> None:
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(
                f"a verdict's reward is {self.reward}; expected a finite number, or Verdict.unscored(reason)"
            )

    @classmethod
    def scored(cls, reward: float, detail: str = "") -> Verdict:
        """Make the verdict on a response that was checked. Raises ValueError unless ``reward`` is finite and real."""
        if not isinstance(reward, Real):  # None would pass for unscored, and "1" for a number
            raise ValueError(  # noqa: TRY004 - one error for every reward that is none, infinite ones included
                f"a scored reward is {reward!r}; expected a finite number, or Verdict.unscored(reason)"
            )
        return cls(float(reward), detail)

    @classmethod
    def unscored(cls, reason: str) -> Verdict:
        """Make the verdict on a response that could not be checked."""
        return cls(None, reason)

    @property
    def is_scored(self) -> bool:
        """Whether the verdict has a reward."""
        return self.reward is not None
