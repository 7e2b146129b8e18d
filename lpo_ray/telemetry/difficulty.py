"""How hard each prompt is to the policy, and whether that changes between its visits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from lpo_ray.records import IntArray, TargetGroup


class Difficulty:
    """Pass rate of each prompt at its last visit, by its tokens: a prompt that comes again has another id."""

    def __init__(self, pass_reward: float) -> None:
        self._pass_reward = pass_reward
        self._last: dict[bytes, float] = {}

    def resumed(self, samples: Iterable[Path]) -> None:
        """The visits that are on record, oldest file first."""
        for path in samples:
            rows = pq.read_table(path, columns=["prompt_id", "attempt", "prompt_token_ids", "reward"]).to_pylist()
            groups: dict[tuple[str, int], list[dict]] = {}
            for row in rows:
                groups.setdefault((row["prompt_id"], row["attempt"]), []).append(row)
            for found in groups.values():
                passing = np.mean([row["reward"] >= self._pass_reward for row in found])
                self._last[_key(np.array(found[0]["prompt_token_ids"], dtype=np.int64))] = float(passing)

    def step(self, targets: Sequence[TargetGroup]) -> dict[str, float]:
        """Metrics of a step: share of its prompts that were visited before, and how much more of their responses pass
        than then (mean, and mean of the size), where any was.
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
