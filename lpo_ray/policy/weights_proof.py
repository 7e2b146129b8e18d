"""Probe of fixed tokens, whose log-probs prove which weights an engine serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lpo_ray.records import FloatArray, IntArray, ScoringItem

SCORED, CACHED = 9, 34
"""tokens of the two sequences; the second is longer than a block of an engine's prefix cache (16 or 32 tokens)"""


def probe_sequences(vocabulary: int, context: int) -> list[IntArray]:
    """Make the probe, the same on every machine.

    Engines score every token of the first sequence, and the last token of the second by a request that may read the
    prefix cache. The tokens are random, so that every part of the model shows in the result: a head that stayed stale
    moves them by far more than the tolerance.
    """
    rng = np.random.default_rng(20260506)
    lengths = [min(length, context) for length in (SCORED, CACHED)]
    return [rng.integers(0, vocabulary, size=length, dtype=np.int64) for length in lengths]


def as_bundles(sequences: Sequence[IntArray]) -> list[ScoringItem]:
    """Make the items with which a learner scores all tokens but the first of each sequence."""
    return [(sequence[:1], [sequence[1:]]) for sequence in sequences]


@dataclass(frozen=True, slots=True)
class ProofResult:
    """Result of the proof of a delivery."""

    difference: float
    """largest difference of log-probs"""
    why: str
    """what arrived other than it was sent, or is stale; empty: nothing"""


def check_delivery(
    sent: Mapping[str, str],
    arrived: Sequence[Mapping[str, str]],
    expected: Sequence[FloatArray],
    served: Sequence[FloatArray],
    cached_tokens: int,
) -> ProofResult:
    """Compare digests (tensor -> digest; ``arrived``: in each process of the engine) and log-probs of the probe.

    ``served`` has only the last log-prob of the last sequence.
    """
    difference = largest_difference([*expected[:-1], expected[-1][-1:]], served)
    for process, found in enumerate(arrived):
        missing = [name for name in sent if name not in found]
        if missing:
            return ProofResult(
                difference, f"{missing[0]} did not arrive ({len(missing)} of {len(sent)} tensors missing)"
            )
        changed = [name for name, digest in sent.items() if found[name] != digest]
        if changed:
            name = changed[0]
            what = f"the bytes of {name} that arrived at process {process} have digest {found[name][:12]}"
            return ProofResult(difference, f"{what}, sent were {sent[name][:12]} ({len(changed)} tensors differ)")
    if cached_tokens:
        return ProofResult(
            difference, f"{cached_tokens} tokens of the probe came from a prefix cache older than these weights"
        )
    return ProofResult(difference, "")


def largest_difference(left: Iterable[np.ndarray], right: Iterable[np.ndarray]) -> float:
    """Compute max |a - b| over pairs of arrays; a NaN on either side counts as infinite."""
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        difference = float(np.max(np.abs(a - b))) if a.shape == b.shape else float("inf")
        worst = max(worst, difference if np.isfinite(difference) else float("inf"))
    return worst
