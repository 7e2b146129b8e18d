"""Checkpoints of a run: written aside and renamed, so that a folder named step_... is always whole."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import Learner

_FOLDER = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """What the loop adds to the learner's own state."""

    step: int
    digest: str
    """of the weights that were published for this step"""
    world_size: int


async def save_checkpoint(root: Path, state: CheckpointState, learner: Learner, keep: int) -> Path:
    """Write ``root/step_000012`` and drop all but the ``keep`` newest (0 keeps all). All or nothing."""
    final = root / f"step_{state.step:06d}"
    partial = root / f".partial-step_{state.step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        await learner.save(partial)
        (partial / "state.json").write_text(json.dumps(asdict(state)))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if keep:
        for old in list_checkpoints(root)[:-keep]:
            shutil.rmtree(old)
    return final


def list_checkpoints(root: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [path for path in root.glob("step_*") if _FOLDER.fullmatch(path.name) and (path / "state.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def read_state(checkpoint: Path, world_size: int) -> CheckpointState:
    """State of a checkpoint. ConfigError when it was written by another number of learner ranks."""
    state = CheckpointState(**json.loads((checkpoint / "state.json").read_text()))
    if state.world_size != world_size:
        raise ConfigError(
            f"checkpoint {checkpoint} was written by {state.world_size} learner ranks, learner.world_size is "
            f"{world_size}; set learner.world_size={state.world_size}, or start a new run with "
            f"model.path={checkpoint / 'policy'}"
        )
    return state
