"""Evaluations of a run: of the policy after some steps, on an engine that is lent for it while the run goes on, or
between two steps where there is none to spare.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

from lpo_ray.errors import ComponentDied, LearnerLost
from lpo_ray.evaluation import evaluate
from lpo_ray.interfaces import Components, RolloutEngine
from lpo_ray.records import Evaluation, Prompt
from lpo_ray.run.signals import first_cause
from lpo_ray.run.spec import RunSpec


class Record(Protocol):
    """Where evaluations go; see recorder.Recorder."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """The run waits for what goes on within."""
        ...

    def has_evaluated(self, step: int) -> bool:
        """Whether an evaluation after ``step`` is on record."""
        ...

    def evaluating(self, done: int, total: int) -> None:
        """How far it is."""
        ...

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """What came out."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...


class Evaluator:
    """One evaluation at a time. ``done``: what came out, by step."""

    def __init__(self, spec: RunSpec, components: Components, heldout: Sequence[Prompt], recorder: Record) -> None:
        """``heldout``: none, and nothing is evaluated."""
        self._spec, self._components, self._heldout, self._recorder = spec, components, heldout, recorder
        self._running: asyncio.Task[None] | None = None
        self.done: dict[int, Evaluation] = {}

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """An evaluation that still goes on ends with the context, without a result."""
        try:
            yield
        finally:
            if self._running is not None:
                self._running.cancel()
                await asyncio.gather(self._running, return_exceptions=True)

    async def during(self, step: int) -> None:
        """Evaluate the policy after ``step``, which all engines serve now. Returns at once when an engine can be lent
        for it; waits for the evaluation before it, and raises what ended that.
        """
        if self._is_known(step):
            return
        await self.finish()
        lent = self._components.lend() if self._spec.lends_for_evaluation else None
        if lent is None:
            await self.now(step)
        else:
            self._running = asyncio.get_running_loop().create_task(self._beside(step, lent))
            await asyncio.sleep(0)  # so that it has begun, and gives the engine back however it ends

    async def now(self, step: int) -> None:
        """Evaluate the policy after ``step`` with all engines."""
        if self._is_known(step):
            return
        with self._recorder.stage("evaluate"):
            found = await self._evaluated(self._components.rollout, self._spec.max_in_flight, live=True)
        self._keep(step, found)

    async def finish(self) -> None:
        """Wait for the evaluation that goes on. Raises what ended it."""
        running, self._running = self._running, None
        if running is not None:
            if not running.done():
                self._recorder.note("the run waits for an evaluation that is not done yet")
            await running

    async def _beside(self, step: int, lent: AbstractAsyncContextManager[RolloutEngine]) -> None:
        """Its engine lost, it is given up: no other has the weights of that step."""
        try:
            async with lent as engine:
                found = await self._evaluated(engine, self._spec.max_in_flight_of_one, live=False)
        except BaseExceptionGroup as group:
            cause = first_cause(group)
            if not isinstance(cause, ComponentDied) or isinstance(cause, LearnerLost):
                raise cause from group
            self._recorder.note(f"the evaluation after step {step} is given up: {cause}")
            return
        self._keep(step, found)

    async def _evaluated(self, engine: RolloutEngine, max_in_flight: int, *, live: bool) -> Evaluation:
        config = self._spec.config.evaluation
        return await evaluate(
            engine,
            self._components.verifier,
            self._heldout,
            self._spec.evaluation_sampling(),
            ks=config.ks,
            pass_reward=config.pass_reward,
            max_in_flight=max_in_flight,
            on_progress=self._recorder.evaluating if live else None,
        )

    def _is_known(self, step: int) -> bool:
        return not self._heldout or self._recorder.has_evaluated(step)

    def _keep(self, step: int, found: Evaluation) -> None:
        self.done[step] = found
        self._recorder.evaluated(step, found)
