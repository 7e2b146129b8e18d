"""Difficulty of each prompt for the policy, and how it changes between visits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from lpo_ray.records import IntArray, TargetGroup
from lpo_ray.telemetry.segment_columns import whole_responses


class Difficulty:
    """Pass rate of each prompt at its last visit, by its tokens: a prompt that comes again has another id."""

    def __init__(self, pass_reward: float) -> None:
        self._pass_reward = pass_reward
        self._last: dict[bytes, float] = {}

    def resumed(self, samples: Iterable[Path]) -> None:
        """Take the visits that are on record, oldest file first."""
        for path in samples:
            names = ["prompt_id", "attempt", "prompt_token_ids", "reward", "segment"]
            present = set(pq.read_schema(path).names)
            table = whole_responses(pq.read_table(path, columns=[name for name in names if name in present]))
            keys = list(zip(table["prompt_id"].to_pylist(), table["attempt"].to_pylist(), strict=True))
            group_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            groups = np.array([group_of[key] for key in keys], dtype=np.int64)
            passed = table["reward"].to_numpy() >= self._pass_reward
            rates = np.bincount(groups, passed) / np.bincount(groups)
            firsts = np.unique(groups, return_index=True)[1]  # of K rows with the same prompt
            prompts = table["prompt_token_ids"].take(firsts)
            for rate, prompt in zip(rates, prompts, strict=True):
                self._last[_key(prompt.values.to_numpy().astype(np.int64))] = float(rate)

    def step(self, targets: Sequence[TargetGroup]) -> dict[str, float]:
        """Return the share of a step's prompts that were visited before and, where any was, by how much their pass rate
        has changed since: the mean, and the mean size.
        """
        changes = []
        for target in targets:
            key = _key(target.group.prompt.token_ids)
            now = float((target.scored.rewards >= self._pass_reward).mean())
            if key in self._last:
                changes.append(now - self._last[key])
            self._last[key] = now
        found = {"revisited_fraction": len(changes) / len(targets)}
        if changes:
            found["difficulty_drift"] = float(np.mean(changes))
            found["difficulty_change"] = float(np.mean(np.abs(changes)))
        return found


def _key(token_ids: IntArray) -> bytes:
    return blake2b(token_ids.tobytes(), digest_size=16).digest()
