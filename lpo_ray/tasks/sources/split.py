"""Where a generated problem belongs: train or held-out, decided by the problem itself, whatever seed made it."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

Split = Literal["train", "heldout"]


def split_of(problem: str, task: str, share: int) -> Split:
    """One in ``share`` problems of a task is held out. ``task``: at most 16 bytes."""
    digest = blake2b(problem.encode(), digest_size=8, person=task.encode()).digest()
    return "heldout" if int.from_bytes(digest, "big") % share == 0 else "train"
