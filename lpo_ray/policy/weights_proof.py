"""Probe of fixed tokens, whose log-probs prove which weights an engine serves; what arrived beside what was sent."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lpo_ray.records import FloatArray, IntArray, ScoringItem, Segment

SCORED, CACHED = 128, 34
"""tokens of the two sequences; the second is longer than a block of an engine's prefix cache (16 or 32 tokens)"""
ROWS = 8
"""prompts that the probe is made of, at most"""
BLOCK = 16
"""tokens of the smallest block of an engine's prefix cache"""
KEPT = 0.9
"""share of the differences that count as typical: rounding alone sends a few tokens of a mixture to other experts"""


def probe_sequences(rows: Sequence[IntArray], context: int) -> list[IntArray]:
    """Make the probe from ``rows``, rendered prompts, one after the other as often as it takes.

    Engines score every token of the first sequence, and the last token of the second by a request that may read the
    prefix cache; so the two begin differently. Each is shorter than ``context``, as an engine adds a token. Raises
    ValueError when the rows have no token.
    """
    if not any(map(len, rows)):
        raise ValueError("a probe of no tokens; expected prompts")
    text = itertools.chain.from_iterable(itertools.cycle([row.tolist() for row in rows]))
    tokens = np.fromiter(itertools.islice(text, SCORED + CACHED), dtype=np.int64)
    lengths = [min(length, context - 1) for length in (SCORED, CACHED)]
    scored, cached = tokens[: lengths[0]], tokens[1:][: lengths[1]].copy()
    if np.array_equal(scored[:BLOCK], cached[:BLOCK]):  # one token again and again
        cached[0] = 0 if cached[0] else 1
    return [scored, cached]


def as_bundles(sequences: Sequence[IntArray]) -> list[ScoringItem]:
    """Make the items with which a learner scores all tokens but the first of each sequence."""
    return [(sequence[:1], [(Segment.answer(sequence[1:]),)]) for sequence in sequences]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Differences of log-probs that were computed twice, in nats."""

    typical: float
    """root mean square of the smallest nine tenths"""
    largest: float
    surprise: float = 0.0
    """mean of -log p by the learner: the less likely the tokens, the larger their logits, and the rounding of these"""


def as_answered(rows: Sequence[FloatArray]) -> list[FloatArray]:
    """Take from the log-probs of the probe what an engine answers: of the last sequence only the last."""
    return [*rows[:-1], rows[-1][-1:]]


def compare(left: Sequence[FloatArray], right: Sequence[FloatArray]) -> Agreement:
    """Compare log-probs row by row, the learner's being ``left``. A NaN counts as infinite, and so do rows of other
    lengths.
    """
    if [row.shape for row in left] != [row.shape for row in right]:
        return Agreement(float("inf"), float("inf"))
    expected = np.concatenate(left).astype(np.float64)
    differences = np.abs(expected - np.concatenate(right))
    differences = np.sort(np.where(np.isfinite(differences), differences, np.inf))
    kept = differences[: max(1, int(KEPT * len(differences)))]
    return Agreement(float(np.sqrt(np.mean(kept**2))), float(differences[-1]), float(-expected.mean()))


def check_arrival(sent: Mapping[str, str], arrived: Sequence[Mapping[str, str]], cached_tokens: int) -> str:
    """Say what arrived other than it was sent, or is stale; empty: nothing. Digests are tensor -> digest; ``arrived``
    has those of each process of the engine.
    """
    for process, found in enumerate(arrived):
        missing = [name for name in sent if name not in found]
        if missing:
            return f"{missing[0]} did not arrive ({len(missing)} of {len(sent)} tensors missing)"
        changed = [name for name, digest in sent.items() if found[name] != digest]
        if changed:
            name = changed[0]
            what = f"the bytes of {name} that arrived at process {process} have digest {found[name][:12]}"
            return f"{what}, sent were {sent[name][:12]} ({len(changed)} tensors differ)"
    if cached_tokens:
        return f"{cached_tokens} tokens of the probe came from a prefix cache older than these weights"
    return ""


def largest_difference(left: Iterable[np.ndarray], right: Iterable[np.ndarray]) -> float:
    """Compute max |a - b| over pairs of arrays; a NaN on either side counts as infinite."""
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        difference = float(np.max(np.abs(a - b))) if a.shape == b.shape else float("inf")
        worst = max(worst, difference if np.isfinite(difference) else float("inf"))
    return worst
