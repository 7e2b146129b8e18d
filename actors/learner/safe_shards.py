"""ZeRO shards read from disk without the code that pickle would run: a run's folder may come from a stranger.

DeepSpeed loads its own files with ``weights_only=False``, which only an environment variable of torch overrides. Beside
tensors and plain values its files hold two classes, which are allowed by name. Anything else is refused. The stage has
two spellings: ``ZeroStageEnum(3)``, and by Python before 3.11.4 ``getattr(ZeroStageEnum, "weights")``.
``python -m actors.learner.safe_shards`` is DeepSpeed's converter to its universal format under the same rule.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

from lpo_ray.errors import CheckpointDamaged


def stage_named(*arguments: object) -> ZeroStageEnum:
    """Stand in for getattr. Raises UnpicklingError for anything but a stage of ZeroStageEnum."""
    match arguments:
        case (kind, str(name)) if kind is ZeroStageEnum and name in ZeroStageEnum.__members__:
            return ZeroStageEnum[name]
    raise pickle.UnpicklingError("GLOBAL getattr of something else than a stage")


ALLOWED = [LossScaler, ZeroStageEnum, (stage_named, "builtins.getattr")]
"""what a shard may hold; beside a stand-in the name that it stands for"""
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's environment variable"""


@contextmanager
def without_code(folder: Path) -> Iterator[None]:
    """Let nothing that is loaded inside run code. Raises CheckpointDamaged naming ``folder`` when a file would."""
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals(ALLOWED):
            yield
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|Unsupported \w+) \S+", str(error))
        why = f"a file of it has more than tensors ({named[0] if named else 'unknown'}), which could run code when read"
        raise CheckpointDamaged(str(folder), why) from error
    finally:
        if before is None:
            del os.environ[FORCE]
        else:
            os.environ[FORCE] = before


def to_universal(shards: Path, target: Path) -> None:
    """Run DeepSpeed's own converter, in a process of its own as it is meant to run. Raises CheckpointDamaged."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "actors.learner.safe_shards", "--input_folder", str(shards),
        "--output_folder", str(target), "--num_extract_workers", "1", "--num_merge_workers", "1",
    ]  # fmt: skip
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckpointDamaged(str(shards), f"ds_to_universal failed: {last}")


if __name__ == "__main__":
    from deepspeed.checkpoint import ds_to_universal

    arguments = ds_to_universal.parse_arguments()
    with without_code(Path(arguments.input_folder)):
        ds_to_universal.main(arguments)
