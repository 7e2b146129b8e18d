"""Replay: a recorded step computed again, from its samples and the checkpoint before it, its weights compared."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from lpo_ray.errors import ConfigError, ReplayDiffers
from lpo_ray.interfaces import Learner
from lpo_ray.learner.packing import Packing, pack_step
from lpo_ray.telemetry.samples import read_step, samples_path
from lpo_ray.training import checkpoint
from lpo_ray.training.ledger import read_ledger


async def replay(
    run_dir: Path,
    model_path: str,
    step: int,
    packing: Packing,
    seed: int,
    opening: AbstractAsyncContextManager[Learner],
    *,
    from_start: bool = False,
) -> str:
    """Replay a run up to ``step``, from the newest checkpoint before it or ``from_start``, on the learner that
    ``opening`` gives; returns one line on what was compared. Raises ReplayDiffers naming the first step whose weights
    are not those that the run published, ConfigError when something that is needed was not recorded.
    """
    recorded = recorded_digests(run_dir, step)
    start = None if from_start else newest_before(run_dir, step)
    first = 0 if start is None else checkpoint.step_of(start)
    missing = [at for at in range(first + 1, step + 1) if not samples_path(run_dir, at).is_file()]
    if missing:
        raise ConfigError(
            f"the samples of step {missing[0]} were not recorded in {run_dir}; a replay of step {step} needs "
            f"those of steps {first + 1} to {step}: run with telemetry.samples_every=1"
        )
    line = f"step {step} of {run_dir}, replayed from {start.name if start else 'the start'}"
    async with opening as learner:
        if start is not None:
            state = await asyncio.to_thread(checkpoint.verify, start, model_path)
            await learner.restore(start, state.world_size)
        for at in range(first, step):
            recorded_step = read_step(samples_path(run_dir, at + 1))
            batch = pack_step(
                recorded_step.targets,
                packing,
                step=at,
                seed=seed,
                updates=recorded_step.updates,
                learning_rate=recorded_step.learning_rate,
            )
            await learner.project(batch)
            digest = await learner.digest()
            if digest != recorded[at + 1]:
                raise ReplayDiffers(
                    f"{line}: step {at + 1} gave weights {digest}, the run published {recorded[at + 1]}; expected the "
                    "same. Were model, configuration, library versions, world size or number of threads others?"
                )
    return f"{line}: weights {recorded[step]}, equal"


def recorded_digests(run_dir: Path, step: int) -> dict[int, str]:
    """Read the digest of each committed step's weights from the ledger. Raises ConfigError when ``step`` is none."""
    with read_ledger(run_dir) as ledger:
        commits = dict(ledger.execute("SELECT step, digest FROM commits").fetchall())
    if step not in commits:
        known = f"1 to {max(commits)}" if commits else "none"
        raise ConfigError(f"step {step} was not committed by {run_dir}; committed steps: {known}")
    return commits


def newest_before(run_dir: Path, step: int) -> Path | None:
    """Find the newest checkpoint older than ``step``; None: the run's start."""
    found = checkpoint.list_checkpoints(run_dir / "checkpoints")
    return next((path for path in reversed(found) if checkpoint.step_of(path) < step), None)
