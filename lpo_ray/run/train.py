"""One run from its spec to its folder: open, build, evaluate, train, evaluate, summarise. Ends cleanly on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import Components, Events
from lpo_ray.records import Evaluation
from lpo_ray.rollout.autoscale import Autoscaler
from lpo_ray.run import settings
from lpo_ray.run.evaluator import Evaluator
from lpo_ray.run.folder import RunFolder, check_prompts
from lpo_ray.run.recorder import Recorder
from lpo_ray.run.recovery import Recovery
from lpo_ray.run.signals import Signals, first_cause
from lpo_ray.run.spec import RunSpec
from lpo_ray.telemetry.stage_clock import Seconds
from lpo_ray.training import call_store
from lpo_ray.training.call_store import CallStore
from lpo_ray.training.ledger import Ledger
from lpo_ray.training.loop import TrainingLoop

Build = Callable[[RunSpec, str, Events], Awaitable[Components]]
"""spec, model folder, events -> the five components, up"""


@dataclass(frozen=True, slots=True)
class RunResult:
    """Result of a finished run."""

    run_dir: Path
    before: Evaluation | None
    after: Evaluation | None


class Steerable(Protocol):
    """Lets others query and scale a live run."""

    def attend(
        self, status: Callable[[], Mapping[str, object]], scale: Callable[[str, int], Awaitable[str]]
    ) -> AbstractAsyncContextManager[None]:
        """Answer until the end of the context. Raises RunBusy when another driver has the run."""
        ...


async def train(
    folder: RunFolder,
    model_path: str,
    build: Build,
    recorder: Recorder,
    signals: Signals,
    steerable: Steerable | None = None,
) -> RunResult:
    """Carry out the run of ``folder``. Raises Interrupted after a signal (work committed), or the first error of a
    component.
    """
    steering = _Steering()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_uncollected())
        if steerable is not None:
            await stack.enter_async_context(steerable.attend(recorder.status, steering.scale))
        return await _train(folder, model_path, build, recorder, signals, steering)


@dataclass(slots=True)
class _Steering:
    """Operations that others may perform on a live run."""

    components: Components | None = None
    """None: they are not up"""

    async def scale(self, role: str, count: int) -> str:
        """Have ``count`` workers of ``role`` from now on; returns what happens. Raises ConfigError."""
        if self.components is None:
            raise ConfigError(f"{role}={count}: the run is starting, or ending; expected one that trains: ask again")
        return await self.components.scale(role, count)


async def _train(
    folder: RunFolder, model_path: str, build: Build, recorder: Recorder, signals: Signals, steering: _Steering
) -> RunResult:
    spec = folder.spec
    config = spec.config
    source = spec.source(spec.tokenizer(model_path))
    heldout = source.heldout(config.evaluation.num_prompts)
    evaluation, loop_settings = settings.evaluation_settings(spec), settings.loop_settings(spec)
    for note in folder.start.notes:
        recorder.note(note)
    if "task.path" in folder.start.changed:
        check_prompts(spec.run_dir, source)
    calls = CallStore(spec.run_dir / call_store.FILE) if spec.has_agent else None
    ledger = Ledger(spec.run_dir / "ledger.sqlite", check=folder.check, calls=calls)
    started = time.monotonic()
    try:
        async with contextlib.AsyncExitStack() as stack:
            components = await stack.enter_async_context(_open(build, spec, model_path, recorder, steering))
            gc.freeze()  # what was made or imported for the start stays, too
            evaluator = Evaluator(evaluation, components, heldout, recorder)
            await stack.enter_async_context(evaluator.opened())
            if spec.end_of_turn:
                recorder.note(f"A response ends at {spec.end_of_turn} too, where the chat template ends a turn")
            for warning in spec.warnings:
                recorder.note(f"Warning: {warning}")
            recovery = Recovery(
                components, ledger, recorder, loop_settings.batch, loop_settings.checkpoints.folder, model_path
            )
            start = await recovery.start(recompute=folder.start.recompute)
            await asyncio.to_thread(folder.record)
            await asyncio.to_thread(recorder.resumed, start.version.step)  # reads all samples
            if evaluation.is_due(start.version.step):
                await evaluator.now(start.version.step)
            if config.rollout.autoscale.max:
                recorder.on_step = _autoscaling(Autoscaler(settings.autoscale_rule(spec)), components, recorder)
            signals.loop = TrainingLoop(components, source, ledger, loop_settings, recorder)
            signals.step = start.version.step
            version = await signals.loop.run(
                start.version, start.owed, evaluator.during, saved=start.saved, recover=recovery.recover
            )
            signals.loop, signals.step = None, version.step
            await evaluator.finish()
            await evaluator.now(version.step)
    except BaseException as error:
        recorder.ended(first_cause(error) if isinstance(error, BaseExceptionGroup) else error)
        raise
    finally:
        if folder.is_ours:  # in a thread: drawing the report takes seconds, and the run is still asked how it is
            await asyncio.to_thread(recorder.close, ledger.counts(), time.monotonic() - started)
        await asyncio.to_thread(ledger.close)
    return RunResult(spec.run_dir, evaluator.done.get(0), evaluator.done.get(version.step))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector from looking, within, at what is there already: most of all objects, such as modules.
    A full collection, for which Ray asks too, holds the GIL for as long as it looks, and so the event loop.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _autoscaling(scaler: Autoscaler, components: Components, recorder: Recorder) -> Callable[[Seconds], None]:
    """Scale the rollout workers by where the time of each step went."""
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
