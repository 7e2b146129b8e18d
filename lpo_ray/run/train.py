"""One run from a plan to its folder: open, build, evaluate, train, evaluate, summarise. Ends cleanly on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from lpo_ray.common.files import write_text
from lpo_ray.config import dump_config
from lpo_ray.config.validate import warnings
from lpo_ray.errors import CheckpointDamaged, ConfigError, LearnerLost, ReplayDiffers
from lpo_ray.evaluation import Evaluation
from lpo_ray.interfaces import Components, Events
from lpo_ray.records import WeightsVersion
from lpo_ray.rollout.autoscale import Autoscaler
from lpo_ray.run.evaluator import Evaluator
from lpo_ray.run.recorder import Recorder
from lpo_ray.run.redo import redo
from lpo_ray.run.signals import Signals, first_cause
from lpo_ray.run.spec import RunSpec
from lpo_ray.telemetry.stage_clock import Seconds
from lpo_ray.training import checkpoint
from lpo_ray.training.checkpoint import CheckpointState
from lpo_ray.training.ledger import Ledger, PendingWork
from lpo_ray.training.loop import TrainingLoop

T = TypeVar("T")
Build = Callable[[RunSpec, str, Events], Awaitable[Components]]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run has to show."""

    run_dir: Path
    before: Evaluation | None
    after: Evaluation | None


class Steerable(Protocol):
    """Lets others ask a run where it is, and scale it, while it goes on."""

    def attend(
        self, status: Callable[[], Mapping[str, object]], scale: Callable[[str, int], Awaitable[str]]
    ) -> AbstractAsyncContextManager[None]:
        """Until the end of the context. Raises RunBusy when the run is in other hands."""
        ...


async def train(
    spec: RunSpec,
    model_path: str,
    build: Build,
    recorder: Recorder,
    signals: Signals,
    attendant: Steerable | None = None,
) -> RunResult:
    """Carry out the plan. Raises Interrupted after a signal (work committed), or the first error of a component."""
    steering = _Steering()
    async with contextlib.AsyncExitStack() as stack:
        if attendant is not None:
            await stack.enter_async_context(attendant.attend(recorder.status, steering.scale))
        return await _train(spec, model_path, build, recorder, signals, steering)


@dataclass(slots=True)
class _Steering:
    """What an attendant may do to the run."""

    components: Components | None = None
    """None: they are not up"""

    async def scale(self, role: str, count: int) -> str:
        """See interfaces.Components."""
        if self.components is None:
            raise ConfigError(f"{role}={count}: the run is starting, or ending; expected one that trains: ask again")
        return await self.components.scale(role, count)


async def _train(
    spec: RunSpec, model_path: str, build: Build, recorder: Recorder, signals: Signals, steering: _Steering
) -> RunResult:
    config = spec.config
    source = spec.source(spec.tokenizer(model_path))
    heldout = source.heldout(config.evaluation.num_prompts)
    spec.run_dir.mkdir(parents=True, exist_ok=True)
    unchanged = spec.learns_as_begun()
    write_text(spec.run_dir / "config.yaml", dump_config(config))
    ledger = Ledger(spec.run_dir / "ledger.sqlite")
    started = time.monotonic()
    try:
        async with contextlib.AsyncExitStack() as stack:
            components = await stack.enter_async_context(_open(build, spec, model_path, recorder, steering))
            evaluator = Evaluator(spec, components, heldout, recorder)
            await stack.enter_async_context(evaluator.opened())
            for warning in warnings(config):
                recorder.note(f"Warning: {warning}")
            start = await _restore(spec, model_path, components, ledger, recorder, unchanged=unchanged)
            if spec.is_evaluated(start.version.step):
                await evaluator.now(start.version.step)
            if spec.config.rollout.autoscale.max:
                recorder.on_step = _autoscaling(Autoscaler(spec.autoscale_rule()), components, recorder)
            settings = spec.loop_settings()
            signals.loop = TrainingLoop(components, source, ledger, settings, recorder)
            signals.step = start.version.step

            async def recover(lost: LearnerLost) -> None:
                await _recover(spec, model_path, components, ledger, recorder, lost)

            version = await signals.loop.run(
                start.version, start.owed, evaluator.during, saved=start.saved, recover=recover
            )
            signals.loop, signals.step = None, version.step
            await evaluator.finish()
            await evaluator.now(version.step)
    except BaseException as error:
        recorder.ended(first_cause(error) if isinstance(error, BaseExceptionGroup) else error)
        raise
    finally:
        recorder.close(ledger.counts(), time.monotonic() - started)
        ledger.close()
    return RunResult(spec.run_dir, evaluator.done.get(0), evaluator.done.get(version.step))


def _autoscaling(scaler: Autoscaler, components: Components, recorder: Recorder) -> Callable[[Seconds], None]:
    """What each step has to say to the number of rollout workers."""
    scaling: set[asyncio.Task[None]] = set()

    async def scale(count: int) -> None:
        recorder.note(f"rollout.autoscale: {await components.scale('rollout', count)}")

    def step(seconds: Seconds) -> None:
        wanted = scaler.step(seconds, recorder.serving())
        if wanted is not None:
            scaling.add(task := asyncio.get_running_loop().create_task(scale(wanted)))
            task.add_done_callback(scaling.discard)

    return step


@contextlib.asynccontextmanager
async def _open(
    build: Build, spec: RunSpec, model_path: str, recorder: Recorder, steering: _Steering
) -> AsyncIterator[Components]:
    watchdog = recorder.watchdog()
    async with watchdog.running(None):
        with recorder.stage("start"):
            components = await build(spec, model_path, recorder)
    try:
        async with watchdog.running(components):
            steering.components = components
            yield components
    finally:
        steering.components = None
        await components.close()


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a run goes on."""

    version: WeightsVersion
    owed: PendingWork
    saved: int
    """step of the checkpoint it came from"""


async def _restore(
    spec: RunSpec, model_path: str, components: Components, ledger: Ledger, recorder: Recorder, *, unchanged: bool
) -> _Start:
    """The newest checkpoint (or the model's own weights), then, if the run learns as it did (``unchanged``), the steps
    that were committed since, computed again; published and proved.
    """

    async def publish(step: int) -> WeightsVersion:
        with recorder.stage("publish"):
            return (await components.transport.publish(step)).version

    found, state = await _from_checkpoint(spec, model_path, components)
    step = saved = 0 if state is None else state.step
    recorded = {version.step: version for version in ledger.commits_after(saved)}
    if unchanged and recorded:
        recorder.note(f"computing steps {saved + 1} to {max(recorded)} again from the groups that made them")
        with recorder.stage("project"):
            step = await redo(components, ledger, spec.batch_settings(), saved)
    version = await publish(step)
    if step > saved and version != recorded[step]:
        why = f"step {step}, computed again, gave weights {version}; the run had recorded {recorded[step]}"
        if state is None:
            raise ReplayDiffers(
                f"{why}, and there is no checkpoint to go back to. Expected the same: was it begun on another machine, "
                "or with other versions of the libraries? Go on where it was begun, or take another run.name"
            )
        recorder.note(f"{why}: the run goes back to the checkpoint of step {saved}")
        await components.learner.restore(found[-1], state.world_size)
        step, version = saved, await publish(saved)
    if state is not None and step == saved and version.digest != state.digest:
        raise CheckpointDamaged(
            str(found[-1]), f"it restored to weights {version}, but was saved as {state.digest[:12]}"
        )
    owed = ledger.resume(step)
    recorder.resumed(step)
    return _Start(version, owed, saved)


async def _from_checkpoint(
    spec: RunSpec, model_path: str, components: Components
) -> tuple[list[Path], CheckpointState | None]:
    """The learner takes the newest checkpoint, which is verified first; without one it stays as it is."""
    found = checkpoint.list_checkpoints(spec.run_dir / "checkpoints")
    state = await asyncio.to_thread(checkpoint.verify, found[-1], model_path) if found else None
    if state is not None:
        await components.learner.restore(found[-1], state.world_size)
    return found, state


async def _recover(
    spec: RunSpec, model_path: str, components: Components, ledger: Ledger, recorder: Recorder, lost: LearnerLost
) -> None:
    """The learner is lost while the run goes on: it is started again, and brought to the last commit, from the newest
    checkpoint and the groups that were trained since.
    ReplayDiffers when its weights are not those of the commit.
    """
    learner, started = components.learner, time.monotonic()
    ranks = learner.world_size
    await learner.reform(lost)
    _, state = await _from_checkpoint(spec, model_path, components)
    saved = 0 if state is None else state.step
    recorded = ledger.commits_after(saved)
    step = await redo(components, ledger, spec.batch_settings(), saved)
    wanted = recorded[-1] if recorded else WeightsVersion(saved, "" if state is None else state.digest)
    reached = WeightsVersion(step, await learner.digest())
    if step < wanted.step or (wanted.digest and reached != wanted and learner.world_size == ranks):
        raise ReplayDiffers(
            f"the learner was brought back to {reached}, but the last commit is {wanted}. Expected the same weights "
            "from the same groups; go on from the newest checkpoint with run.resume=auto"
        )
    again = f", {step - saved} steps computed again" if step > saved else ""
    rounding = "" if reached.digest == wanted.digest or not wanted.digest else "; they differ from before by rounding"
    if learner.world_size != ranks:
        again += f", with {learner.world_size} ranks instead of {ranks}{rounding}"
    recorder.note(f"the learner is back at step {step} after {time.monotonic() - started:.1f} s{again}")
