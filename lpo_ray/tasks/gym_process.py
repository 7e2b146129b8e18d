"""A process of its own for generators of Reasoning Gym that take texts out of sets.

What order a set has is decided by the hash seed of its process, which is another in each: there a problem would be
another one in a resumed run. This process has PYTHONHASHSEED=0. It ends when the process that started it does.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from lpo_ray.errors import DataError

ORDERED_BY_HASH = frozenset(
    {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
"""generators of version 0.1.25 that take texts out of sets"""


class GeneratorProcess:
    """Process that makes entries, asked for one at a time by one thread."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lpo_ray.tasks.gym_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )

    def entry(self, name: str, options: Mapping[str, object], number: int) -> Mapping[str, Any]:
        """Return entry ``number`` of a dataset; ``options`` hold its seed and size. DataError when the process has
        died.
        """
        asking, answering = self._process.stdin, self._process.stdout
        assert asking is not None and answering is not None
        try:
            asking.write(json.dumps([name, dict(options), number]).encode() + b"\n")
            asking.flush()
            return pickle.load(answering)
        except (OSError, EOFError) as error:
            raise DataError(
                f"the process that makes problems of reasoning_gym:{name} died with exit code {self._process.poll()}; "
                "expected an entry, see what it wrote before this"
            ) from error

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


class RemoteDataset:
    """A dataset whose entries another process makes."""

    def __init__(self, process: GeneratorProcess, name: str, options: Mapping[str, object]) -> None:
        self._process, self._name, self._options = process, name, options

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        """Return one entry: question, answer, metadata."""
        return self._process.entry(self._name, self._options, number)
