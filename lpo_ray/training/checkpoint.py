"""Checkpoints of a run: written aside, synced and renamed, so that a folder named step_... is always whole, also after
a power cut. What a checkpoint replaces is removed once it has its name.

``state.json`` lists every file with its size and digest; ``verify`` compares the folder with it before a restore.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lpo_ray.common.files import PARTIAL, explained, make_folder, publish_folder, remove_folder, room
from lpo_ray.errors import CheckpointDamaged, CheckpointFailed, ComponentFailed, ConfigError
from lpo_ray.interfaces import Learner

_FOLDER = re.compile(r"step_(\d{6,})")
_STATE = "state.json"
REPLACED = f"{PARTIAL}replaced-"
"""prefix of a checkpoint while a newer one of the same step takes its name"""
SHAPE = ("architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "tie_word_embeddings")  # fmt: skip
"""keys of a model's config.json that decide which weights fit"""


@dataclass(frozen=True, slots=True)
class CheckpointRules:
    """Rules of when checkpoints are written, and which are kept."""

    folder: Path
    every: int
    """steps between two; 0: only the last"""
    keep: int
    """number of newest ones; 0: all"""
    best: str | None
    """name of the score whose best checkpoint is kept as well"""


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """State that the loop adds to the learner's own."""

    step: int
    digest: str
    """digest of the weights that were published for this step"""
    world_size: int
    score: float | None = None
    """the value of CheckpointRules.best, where it is known"""


async def save_checkpoint(
    rules: CheckpointRules, state: CheckpointState, learner: Learner, asked: Callable[[], None] = lambda: None
) -> Path:
    """Write ``folder/step_000012`` and drop what the rules do not keep. All or nothing: CheckpointFailed says why, and
    leaves the checkpoints before it as they were. A learner that dies or does not answer meanwhile keeps its own error.

    ``asked`` is called once the learner has taken the call.
    """
    root = rules.folder
    final = root / f"step_{state.step:06d}"
    partial = root / f"{PARTIAL}{final.name}"
    try:
        await asyncio.to_thread(_begin, partial)
        asyncio.get_running_loop().call_soon(asked)
        await learner.save(partial)
        files = await asyncio.to_thread(_digests, partial)
        text = json.dumps({**asdict(state), "files": files}, indent=1)
        await asyncio.to_thread(_publish, partial, final, text)
    except BaseException as error:
        why = f"{error} ({room(root)})" if isinstance(error, ComponentFailed) else str(error)
        await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
        if isinstance(error, OSError | ComponentFailed):
            raise CheckpointFailed(str(final), why) from error
        raise
    await asyncio.to_thread(_remove_surplus, rules)
    return final


def tidy(root: Path) -> None:
    """Put back a checkpoint whose replacement was cut short, and remove what else killed drivers left half done. Only
    the driver that holds the run's folder may call this.
    """
    for path in sorted(root.glob(f"{REPLACED}*")):
        final = root / path.name.removeprefix(REPLACED)
        if not final.exists():
            path.rename(final)
    for path in root.glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def list_checkpoints(root: Path) -> list[Path]:
    """List the whole checkpoints, oldest first."""
    found = [path for path in root.glob("step_*") if _FOLDER.fullmatch(path.name) and (path / _STATE).is_file()]
    return sorted(found, key=step_of)


def chosen(run_dir: Path, step: int | None) -> Path:
    """Find the checkpoint of ``step`` in a run's folder, or the newest. Raises ConfigError when it has none."""
    found = {step_of(path): path for path in list_checkpoints(run_dir / "checkpoints")}
    if not found:
        raise ConfigError(f"run folder {run_dir} has no checkpoint; expected the folder of a run that was trained")
    step = max(found) if step is None else step
    if step not in found:
        raise ConfigError(f"{run_dir} has no checkpoint of step {step}; it has those of {', '.join(map(str, found))}")
    return found[step]


def step_of(checkpoint: Path) -> int:
    """Step after which the checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))


def read_state(checkpoint: Path) -> CheckpointState:
    """Read the state of a checkpoint."""
    return _state(_stored(checkpoint))


def verify(checkpoint: Path, model_path: str) -> CheckpointState:
    """Compare every file with its digest, and the policy's shape with the model of this run. Returns the state.

    Raises CheckpointDamaged naming the file, or the value that differs.
    """
    stored, found = _stored(checkpoint), _digests(checkpoint)
    for name, (size, digest) in stored["files"].items():
        if name not in found:
            raise CheckpointDamaged(str(checkpoint), f"{name} is missing")
        if found[name][0] != size:
            raise CheckpointDamaged(str(checkpoint), f"{name} has {found[name][0]} bytes, was written with {size}")
        if found[name][1] != digest:
            raise CheckpointDamaged(str(checkpoint), f"{name} has changed since it was written")
    theirs, ours = (_config(Path(path)) for path in (checkpoint / "policy", model_path))
    for key in SHAPE:
        if ours and theirs and theirs.get(key) != ours.get(key):
            raise CheckpointDamaged(
                str(checkpoint),
                f"it is of another model: its {key} is {theirs.get(key)}, this run's is {ours.get(key)}",
            )
    return _state(stored)


def _begin(partial: Path) -> None:
    """Make the folder, empty."""
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)


def _remove_surplus(rules: CheckpointRules) -> None:
    for folder in _surplus(rules):
        remove_folder(folder)


def _surplus(rules: CheckpointRules) -> list[Path]:
    found = list_checkpoints(rules.folder)
    if not rules.keep:
        return []
    kept = set(found[-rules.keep :])
    scored = {path: score for path in found if (score := _score(path)) is not None}
    if rules.best and scored:
        kept.add(max(scored, key=lambda path: (scored[path], step_of(path))))
    return [path for path in found if path not in kept]


def _score(path: Path) -> float | None:
    try:
        return read_state(path).score
    except CheckpointDamaged:  # an older one: whoever restores it is told
        return None


def _digests(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and digest of each file, by its path in the folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == _STATE:
            continue
        digest = blake2b(digest_size=16)
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        found[str(path.relative_to(folder))] = (path.stat().st_size, digest.hexdigest())
    return found


def _publish(partial: Path, final: Path, state: str) -> None:
    """Complete the folder and give it its name, in place of an older one of the same step."""
    with explained(partial):
        (partial / _STATE).write_text(state, encoding="utf-8")
        replaced = final.with_name(f"{REPLACED}{final.name}")
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        publish_folder(partial, final)
        shutil.rmtree(replaced, ignore_errors=True)


def _stored(checkpoint: Path) -> dict[str, Any]:
    try:
        return json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointDamaged(str(checkpoint), f"{_STATE} cannot be read: {error}") from error


def _state(stored: Mapping[str, Any]) -> CheckpointState:
    return CheckpointState(**{name: stored[name] for name in CheckpointState.__dataclass_fields__})


def _config(folder: Path) -> Mapping[str, object]:
    """Read config.json of a model folder. Empty for an adapter's, and for a hub's name: that is looked up elsewhere."""
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
