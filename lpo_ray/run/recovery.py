"""Recovery of the learner: the newest checkpoint, then the steps since, recomputed from the groups that made them.

The ledger is the log of what was trained, a checkpoint is where that log may be cut. Recomputed steps have the digests
that the run had recorded, so metrics, samples and the groups that wait to be trained stay as they are.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lpo_ray.errors import CheckpointDamaged, LearnerLost, ReplayDiffers
from lpo_ray.interfaces import Components
from lpo_ray.records import WeightsVersion
from lpo_ray.training import checkpoint
from lpo_ray.training.checkpoint import CheckpointState
from lpo_ray.training.ledger import Ledger, PendingWork
from lpo_ray.training.loop import BatchSettings, make_batch


class Journal(Protocol):
    """Receiver of what recovery reports: the recorder in a run."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time what happens within as stage ``name``."""
        ...

    def note(self, text: str) -> None:
        """Log one line."""
        ...


@dataclass(frozen=True, slots=True)
class Start:
    """Point where a run begins or continues."""

    version: WeightsVersion
    owed: PendingWork
    saved: int
    """step of the checkpoint it came from"""


@dataclass(frozen=True, slots=True)
class Recovery:
    """Brings a learner to the last commit of a run. ``model_path``: of the weights that the run began with."""

    components: Components
    ledger: Ledger
    journal: Journal
    settings: BatchSettings
    checkpoints: Path
    model_path: str

    async def start(self, *, recompute: bool) -> Start:
        """Restore the newest checkpoint, or keep the model's own weights. With ``recompute``, recompute the steps
        committed since. Publish and prove the result. Raises ReplayDiffers, CheckpointDamaged.
        """
        await asyncio.to_thread(checkpoint.tidy, self.checkpoints)
        found, state = await self._restore()
        step = saved = 0 if state is None else state.step
        recorded = {version.step: version for version in await self._commits_after(saved)}
        if recompute and recorded:
            self.journal.note(f"computing steps {saved + 1} to {max(recorded)} again from the groups that made them")
            with self.journal.stage("project"):
                step = await self._recompute(saved)
        version = await self._publish(step)
        if step > saved and version != recorded[step]:
            why = f"step {step}, computed again, gave weights {version}; the run had recorded {recorded[step]}"
            if state is None:
                raise ReplayDiffers(
                    f"{why}, and there is no checkpoint to return to. Expected the same: was it begun on another "
                    "machine, or with other versions of the libraries? Continue where it was begun, or take another "
                    "run.name"
                )
            self.journal.note(f"{why}: the run returns to the checkpoint of step {saved}")
            await self.components.learner.restore(found[-1], state.world_size)
            step, version = saved, await self._publish(saved)
        if state is not None and step == saved and version.digest != state.digest:
            raise CheckpointDamaged(
                str(found[-1]), f"it restored to weights {version}, but was saved as {state.digest[:12]}"
            )
        return Start(version, await asyncio.to_thread(self.ledger.resume, step), saved)

    async def recover(self, lost: LearnerLost) -> None:
        """Restart the lost learner and bring it to the last commit. Raises ReplayDiffers when its weights are not those
        of the commit.
        """
        learner, started = self.components.learner, time.monotonic()
        ranks = learner.world_size
        await learner.reform(lost)
        _, state = await self._restore()
        saved = 0 if state is None else state.step
        recorded = await self._commits_after(saved)
        step = await self._recompute(saved)
        wanted = recorded[-1] if recorded else WeightsVersion(saved, "" if state is None else state.digest)
        reached = WeightsVersion(step, await learner.digest())
        if step < wanted.step or (wanted.digest and reached != wanted and learner.world_size == ranks):
            raise ReplayDiffers(
                f"the learner was brought back to {reached}, but the last commit is {wanted}. Expected the same "
                "weights from the same groups; continue from the newest checkpoint with run.resume=auto"
            )
        again = f", {step - saved} steps computed again" if step > saved else ""
        rounding = "" if reached.digest == wanted.digest or not wanted.digest else "; they differ by rounding"
        if learner.world_size != ranks:
            again += f", with {learner.world_size} ranks instead of {ranks}{rounding}"
        self.journal.note(f"the learner is back at step {step} after {time.monotonic() - started:.1f} s{again}")

    async def _restore(self) -> tuple[list[Path], CheckpointState | None]:
        """Verify the newest checkpoint and give it to the learner; without one the learner stays as it is."""
        found = checkpoint.list_checkpoints(self.checkpoints)
        state = await asyncio.to_thread(checkpoint.verify, found[-1], self.model_path) if found else None
        if state is not None:
            await self.components.learner.restore(found[-1], state.world_size)
        return found, state

    async def _recompute(self, step: int) -> int:
        """Recompute the steps committed after ``step``, whose weights the learner holds. Returns the last one, earlier
        than the last commit where the ledger no longer has a step's groups.
        """
        for version in await self._commits_after(step):
            groups, anchor = await asyncio.to_thread(self.ledger.batch, version.step)
            if not groups:
                break
            _, batch = await make_batch(self.components, groups, anchor, self.settings, step)
            await self.components.learner.project(batch)
            step = version.step
        return step

    async def _commits_after(self, step: int) -> list[WeightsVersion]:
        return await self.ledger.in_turn(self.ledger.commits_after, step)

    async def _publish(self, step: int) -> WeightsVersion:
        with self.journal.stage("publish"):
            return (await self.components.transport.publish(step)).version
