"""Case: the question that a verifier is asked. Stdlib only: verifier processes import it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lpo_ray.verifiers.sandbox.limits import Limits


@dataclass(frozen=True, slots=True)
class Case:
    """One response to check. Its fields are the names that a verifier may take as parameters.

    Example: ``Case("3,4,7=5:", "(3*4-7)", '{"numbers": [3, 4, 7], "target": 5}')``
    """

    prompt: str
    """prompt as the policy saw it"""
    response: str
    answer: str
    """what the task says is right"""
    row: Mapping[str, Any] = field(default_factory=dict)
    """the dataset's other columns; with messages instead of a text as its prompt, these as ``prompt``"""
    truncated: bool = False
    """whether it ended at sampling.max_tokens"""
    sandbox: Limits = field(default_factory=Limits)
    """limits for verifiers that run what the response says"""
