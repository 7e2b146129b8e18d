"""Case: the question that a verifier is asked. Stdlib only: verifier processes import it."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lpo_ray.verifiers.sandbox.limits import Limits


@dataclass(frozen=True, slots=True)
class Sampled:
    """Sampled response, as other systems hand it to their reward functions. Made for functions from outside only.

    Example: ``Sampled(array("q", [7, 8, 2]), "<user>3+4=", "7", "<user>3+4=7<eos>", 12)``
    """

    token_ids: array[int]
    """of the response, the stop token included (TRL)"""
    prompt: str
    """prompt with all special tokens (OpenRLHF)"""
    response: str
    """response without any special token (TRL, verl, verifiers)"""
    query: str
    """prompt and response with all special tokens (OpenRLHF)"""
    step: int
    """newest weights that sampled the response (TRL's trainer_state.global_step)"""


@dataclass(frozen=True, slots=True)
class Case:
    """One response to check. Its fields but ``sampled`` are the names that a verifier may take as parameters.

    Example: ``Case("3,4,7=5:", "(3*4-7)", '{"numbers": [3, 4, 7], "target": 5}')``
    """

    prompt: str
    """prompt as the policy saw it; special tokens are left out but for tags such as <think>, also in ``response``"""
    response: str
    answer: str
    """what the task says is right, as text"""
    row: Mapping[str, Any] = field(default_factory=dict)
    """the data set's other columns, and its prompt as ``prompt``: a text or messages"""
    truncated: bool = False
    """whether it ended at sampling.max_tokens"""
    sandbox: Limits = field(default_factory=Limits)
    """limits for verifiers that run what the response says"""
    raw_answer: Any = None
    """what the task says is right, as the data set has it: a number, a list, a mapping; None where there is none"""
    sampled: Sampled | None = None
    """None: the case was made of texts"""

    @property
    def gold(self) -> Any:  # noqa: ANN401 - any JSON
        """A copy of the answer in its own type, or its text where there is no other."""
        return self.answer if self.raw_answer is None else copy.deepcopy(self.raw_answer)

    @property
    def raw_prompt(self) -> Any:  # noqa: ANN401 - a text or messages
        """The prompt as the data set has it: a copy, since functions of other systems pop messages from it."""
        return copy.deepcopy(self.row.get("prompt", self.prompt))

    @property
    def plain_response(self) -> str:
        """The response without any special token."""
        return self.response if self.sampled is None else self.sampled.response

    @property
    def columns(self) -> dict[str, Any]:
        """A copy of the row's columns but the prompt, and the answer in its own type as ``answer`` unless one has this
        name. Functions from outside may change what they are given; the row is that of all responses.
        """
        return {"answer": self.gold, **{key: copy.deepcopy(item) for key, item in self.row.items() if key != "prompt"}}
