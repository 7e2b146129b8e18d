"""The program that tasks.gym_process.GeneratorProcess runs. A line of JSON asks for an entry, which is answered as a
pickle.

Beside the tasks, not in them: their package imports torch, which takes longer than all else here.
"""

from __future__ import annotations

import json
import pickle
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

from lpo_ray.verifiers.reasoning_gym import made_dataset

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

KEPT_DATASETS = 32


@lru_cache(maxsize=KEPT_DATASETS)
def dataset(name: str, options: str) -> ProceduralDataset:
    """Make a dataset of Reasoning Gym, or take one made before; ``options`` are JSON."""
    return made_dataset(name, json.loads(options))


def main() -> None:
    """Answer until nobody asks any more."""
    answering = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a generator prints is no answer
    for line in sys.stdin:
        name, options, number = json.loads(line)
        pickle.dump(dataset(name, json.dumps(options, sort_keys=True))[number], answering)
        answering.flush()


if __name__ == "__main__":
    main()
