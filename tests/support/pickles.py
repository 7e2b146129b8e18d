"""A pickle that runs code when it is read."""

from __future__ import annotations

from pathlib import Path


class Evil:
    """Pickled, it makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)
