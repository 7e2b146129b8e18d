"""Seeds derived from what they are for, so that no two draws of a run ever share one."""

from __future__ import annotations

from hashlib import blake2b


def derive_seed(run_seed: int, *parts: str | int) -> int:
    """A 62-bit seed for (run seed, parts), e.g. (prompt id, attempt, sample index). Stable across machines."""
    text = "\x1f".join(str(part) for part in (run_seed, *parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 2
