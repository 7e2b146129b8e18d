"""Pickles of DeepSpeed read without the code that pickle would run: a run's folder may come from a stranger.

Earlier versions kept the training state in DeepSpeed's own files. Beside tensors and plain values these hold two
classes, which are allowed by name. Anything else is refused. The stage has two spellings: ``ZeroStageEnum(3)``, and by
Python before 3.11.4 ``getattr(ZeroStageEnum, "weights")``.
"""

from __future__ import annotations

import os
import pickle
import re
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
