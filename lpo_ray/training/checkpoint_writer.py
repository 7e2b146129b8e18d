"""Checkpoints during a run: written while the next step is sampled, whole before the next projection."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable

from lpo_ray.errors import LpoRayError
from lpo_ray.interfaces import Learner, Observer
from lpo_ray.records import WeightsVersion
from lpo_ray.training.checkpoint import CheckpointRules, CheckpointState, save_checkpoint
from lpo_ray.training.learner_recovery import LearnerRecovery
from lpo_ray.training.ledger import Ledger


class CheckpointWriter:
    """Writes checkpoints of the learner, one at a time, as tasks of the run's task group."""

    def __init__(
        self,
        rules: CheckpointRules,
        learner: Learner,
        recovery: LearnerRecovery,
        ledger: Ledger,
        observer: Observer,
        tasks: asyncio.TaskGroup,
        *,
        keep_steps: int,
    ) -> None:
        """``keep_steps``: newest steps whose groups the ledger keeps, since they may be reused."""
        self._rules, self._learner, self._recovery = rules, learner, recovery
        self._ledger, self._observer, self._tasks = ledger, observer, tasks
        self._keep_steps = keep_steps
        self._saving: asyncio.Task[None] | None = None
        self.saved = -1
        """step of the newest checkpoint"""
        self.standing: WeightsVersion | None = None
        """commit at which the learner is; None between an update and its commit"""

    async def begin(self, version: WeightsVersion) -> None:
        """Begin to save; the next step is sampled meanwhile. The learner takes the call now, so what follows (the next
        projection) does not change what is saved.
        """
        await self.until_saved()
        if version.step == self.saved:
            return
        asked = asyncio.Event()
        self._saving = self._tasks.create_task(self.save(version, asked.set))
        self._saving.add_done_callback(lambda _: asked.set())
        await asked.wait()

    async def until_saved(self) -> None:
        """Wait for the checkpoint that is being written, if there is one."""
        if self._saving is not None:
            await self._saving

    async def save(self, version: WeightsVersion, asked: Callable[[], None] = lambda: None) -> None:
        """Write a checkpoint; once it is whole the ledger forgets what only a resume from the one before it needs.
        ``asked`` is called once the learner has taken the call.
        """
        await self._recovery.run(functools.partial(self._write, version, self._score(), asked))
        await asyncio.to_thread(self._ledger.settle, version.step, self._keep_steps)

    async def save_standing(self) -> None:
        """Write a checkpoint at the end of a run that lost an engine, the verifier or the target builder and still has
        its learner. Between an update and its commit the learner is a step ahead of the ledger: then nothing is
        written, and the run continues from the checkpoint before.
        """
        version = self.standing
        if version is None or version.step == self.saved:
            return
        with contextlib.suppress(LpoRayError):  # the error that ended the run is the one to tell
            await self._write(version, self._score())

    def _score(self) -> float | None:
        """Score by which the best checkpoint is chosen."""
        return self._observer.score(self._rules.best) if self._rules.best else None

    async def _write(
        self, version: WeightsVersion, score: float | None, asked: Callable[[], None] = lambda: None
    ) -> None:
        self._ledger.check()
        state = CheckpointState(version.step, version.digest, self._learner.world_size, score)
        with self._observer.stage("checkpoint"):
            await save_checkpoint(self._rules, state, self._learner, asked)
        self.saved = version.step
