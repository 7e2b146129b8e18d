"""Seeds derived from their purpose, so that no two draws of a run share one."""

from __future__ import annotations

from hashlib import blake2b


def derive_seed(run_seed: int, *parts: str | int) -> int:
    """Derive a 62-bit seed from (run seed, parts), e.g. (prompt id, attempt, index). Stable across machines."""
    text = "\x1f".join(str(part) for part in (run_seed, *parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 2
