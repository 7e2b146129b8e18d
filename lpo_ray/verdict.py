"""Verdict of a verifier on one response. Standard library only: verifier processes import it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal

Lack = Literal["abstained", "unscored", "failed"]
"""why a response has no reward: the verifier does not apply to it, has no verdict on it, or could not be asked"""


class BadAnswer(ValueError):
    """Error of an answer that a verifier cannot read: the data set's fault, so nothing can be said of a response."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict: scored (a finite reward) or without a reward (a reason). A check that failed is never a reward of 0.

    Example: ``Verdict.scored(0.1, "value 21, target 22")``, ``Verdict.unscored("no verdict within 10 s")``
    """

    reward: float | None
    detail: str
    lack: Lack | None = None
    """why there is no reward; None when there is one"""

    def __post_init__(self) -> None:
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(
                f"a verdict's reward is {self.reward}; expected a finite number, or Verdict.unscored(reason)"
            )
        if self.reward is None and self.lack is None:
            object.__setattr__(self, "lack", "unscored")

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
        """Make the verdict on a response that the verifier has no verdict on: by its nature, or by the row's."""
        return cls(None, reason, "unscored")

    @classmethod
    def abstained(cls, reason: str) -> Verdict:
        """Make the verdict of a verifier that does not apply to the response: in a sum the others decide."""
        return cls(None, reason, "abstained")

    @classmethod
    def failed(cls, reason: str) -> Verdict:
        """Make the verdict of a verifier that could not be asked, through no fault of row or response."""
        return cls(None, reason, "failed")

    @property
    def is_scored(self) -> bool:
        """Whether the verdict has a reward."""
        return self.reward is not None
