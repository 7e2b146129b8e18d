"""Penalty for a response's length, before it is cut off. Stdlib only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Overlong:
    """Soft overlong punishment (DAPO, Eq. 13): 0 up to ``max_tokens - buffer_tokens``, from there on down a straight
    line to ``-penalty`` at ``max_tokens``.

    Example: ``Overlong(100, 20, 1.0)(90) == -0.5``
    """

    max_tokens: int
    """longest response: sampling.max_tokens"""
    buffer_tokens: int = 0
    """0: nothing is lost"""
    penalty: float = 1.0

    def __call__(self, num_tokens: int) -> float:
        """Compute what is added to the reward of a response of ``num_tokens``."""
        if not self.buffer_tokens:
            return 0.0
        over = num_tokens - (self.max_tokens - self.buffer_tokens)
        return -self.penalty * min(max(over, 0) / self.buffer_tokens, 1.0)
