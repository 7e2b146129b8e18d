"""Result of one prompt, as an evaluation keeps it. n responses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import Prompt, ScoredGroup
from lpo_ray.verifiers.answers import answer_of


@dataclass(frozen=True, slots=True)
class PromptResult:
    """Result of one prompt. Made from a scored group, or read from the store.

    Example: ``PromptResult("heldout-00000003", "9f0c...", (1.0, 0.1), ("3*4-7", "3+4"), (8, 4), ("stop", "stop"),
    ("(3*4)-7", "3+4"))`` (without the parentheses the answer is another)
    """

    prompt_id: str
    prompt: str
    """digest of what was asked; see ``digest_of``"""
    rewards: tuple[float, ...]
    """[n]"""
    answers: tuple[str | None, ...]
    """[n] as the verifier reads them; None: the response gives none"""
    lengths: tuple[int, ...]
    """[n] tokens, the stop token included"""
    finish_reasons: tuple[str, ...]
    """[n] "stop", or "length" when the response was cut off"""
    responses: tuple[str, ...]
    """[n] text without special tokens but tags; of a conversation all that stands behind its first context"""
    turns: tuple[int, ...] = ()
    """[n] turns of each conversation; empty: all are single answers"""

    def __post_init__(self) -> None:
        for name in ("answers", "lengths", "finish_reasons", "responses", *(("turns",) if self.turns else ())):
            if len(getattr(self, name)) != len(self.rewards):
                raise ValueError(
                    f"result of {self.prompt_id}: {len(self.rewards)} rewards, but {len(getattr(self, name))} {name}"
                )

    @classmethod
    def of(cls, scored: ScoredGroup, tokenizer: Tokenizer, given: Prompt | None = None) -> PromptResult:
        """Make the result of a group that was sampled and scored. ``given``: the prompt that it was sampled for, where
        an environment may have begun with another context.
        """
        prompt, responses = scored.group.prompt, scored.group.responses
        said = [response.said(tokenizer.decode) for response in responses]
        asked = tokenizer.decode(prompt.token_ids)
        return cls(
            prompt_id=prompt.prompt_id,
            prompt=digest_of(given or prompt),
            rewards=tuple(float(reward) for reward in scored.rewards),
            answers=tuple(answer_of(prompt.verifier, text, prompt.row, asked) for text in said),
            lengths=tuple(len(response.token_ids) for response in responses),
            finish_reasons=tuple(response.finish_reason for response in responses),
            responses=tuple(
                text
                if response.conversation is None
                else "\n".join(tokenizer.decode(s.token_ids) for s in response.segments)
                for response, text in zip(responses, said, strict=True)
            ),
            turns=tuple(len(r.turns) for r in responses) if any(r.conversation for r in responses) else (),
        )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> PromptResult:
        """Read what ``to_json`` gave. Raises KeyError, TypeError or ValueError for anything else."""
        lists = ("rewards", "answers", "lengths", "finish_reasons", "responses")
        found = (tuple(stored[name]) for name in lists)
        return cls(stored["prompt_id"], stored["prompt"], *found, turns=tuple(stored.get("turns", ())))

    def to_json(self) -> dict[str, Any]:
        """Return the form that the store writes."""
        return {name: value for name, value in asdict(self).items() if name != "turns" or self.turns}

    def passed(self, pass_reward: float) -> np.ndarray:
        """Return [n] whether the reward is at least ``pass_reward``. In float32, as rewards are: 0.1 is 0.1."""
        return np.asarray(self.rewards, dtype=np.float32) >= np.float32(pass_reward)


def digest_of(prompt: Prompt) -> str:
    """Digest all that decides what was asked and how it is scored: token ids, answer, verifier and row."""
    digest = blake2b(prompt.token_ids.tobytes(), digest_size=16)
    scored_by = (prompt.answer, prompt.verifier, prompt.raw_answer, prompt.row)
    digest.update(json.dumps(scored_by, sort_keys=True, default=str).encode())
    return digest.hexdigest()
