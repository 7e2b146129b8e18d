"""Evaluations of a run: of the policy after some steps, on an engine lent for it while training continues, or between
two steps where no engine can be spared.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from lpo_ray.errors import ComponentDied, LearnerLost
from lpo_ray.evaluation import evaluate
from lpo_ray.interfaces import Components, RolloutEngine
from lpo_ray.records import Evaluation, Prompt, Sampling
from lpo_ray.run.signals import first_cause


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """Settings of evaluations: how policies are evaluated, and when during a run."""

    sampling: Sampling
    ks: tuple[int, ...]
    pass_reward: float
    every: int
    """steps; 0: only before and after the run"""
    in_flight: int
    """prompts on their way at once, for each engine"""
    num_engines: int
    lend_engine: bool
    """whether an engine may be lent for an evaluation while training continues"""

    @property
    def max_in_flight(self) -> int:
        """Prompts on their way at once on all engines."""
        return self.num_engines * self.in_flight

    def is_due(self, step: int) -> bool:
        """Whether the policy after ``step`` is evaluated before the run continues from there."""
        return step == 0 or (self.every > 0 and step % self.every == 0)


class Record(Protocol):
    """Receiver of evaluations: the recorder in a run."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time what happens within as stage ``name``."""
        ...

    def has_evaluated(self, step: int) -> bool:
        """Whether an evaluation after ``step`` is on record."""
        ...

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation is."""
        ...

    async def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Write the evaluation of the policy after ``step``."""
        ...

    def note(self, text: str) -> None:
        """Log one line."""
        ...


class Evaluator:
    """Evaluates a run's policy, one evaluation at a time. ``done`` has the results by step."""

    def __init__(
        self, settings: EvaluationSettings, components: Components, heldout: Sequence[Prompt], recorder: Record
    ) -> None:
        """Evaluate on ``heldout``; without prompts nothing is evaluated."""
        self._settings, self._components, self._heldout, self._recorder = settings, components, heldout, recorder
        self._running: asyncio.Task[None] | None = None
        self.done: dict[int, Evaluation] = {}

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """End a running evaluation with the context, without a result."""
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
        lent = self._components.lend() if self._settings.lend_engine else None
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
            found = await self._evaluated(self._components.rollout, self._settings.max_in_flight, live=True)
        await self._keep(step, found)

    async def finish(self) -> None:
        """Wait for the running evaluation. Raises what ended it."""
        running, self._running = self._running, None
        if running is not None:
            if not running.done():
                self._recorder.note("the run waits for an evaluation that is not done yet")
            await running

    async def _beside(self, step: int, lent: AbstractAsyncContextManager[RolloutEngine]) -> None:
        """Evaluate on a lent engine. If that is lost, give up: no other engine has the weights of that step."""
        try:
            async with lent as engine:
                found = await self._evaluated(engine, self._settings.in_flight, live=False)
        except BaseExceptionGroup as group:
            cause = first_cause(group)
            if not isinstance(cause, ComponentDied) or isinstance(cause, LearnerLost):
                raise cause from group
            self._recorder.note(f"the evaluation after step {step} is given up: {cause}")
            return
        await self._keep(step, found)

    async def _evaluated(self, engine: RolloutEngine, max_in_flight: int, *, live: bool) -> Evaluation:
        settings = self._settings
        return await evaluate(
            engine,
            self._components.verifier,
            self._heldout,
            settings.sampling,
            ks=settings.ks,
            pass_reward=settings.pass_reward,
            max_in_flight=max_in_flight,
            on_progress=self._recorder.evaluating if live else None,
        )

    def _is_known(self, step: int) -> bool:
        return not self._heldout or self._recorder.has_evaluated(step)

    async def _keep(self, step: int, found: Evaluation) -> None:
        self.done[step] = found
        await self._recorder.evaluated(step, found)
