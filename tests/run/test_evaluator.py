"""Evaluations beside the run, on an engine that is lent, and between two steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from lpo_ray.config import load_config
from lpo_ray.errors import ComponentDied, TooManyLost
from lpo_ray.interfaces import RolloutEngine
from lpo_ray.records import Evaluation, Prompt, PromptGroup, Sampling, ScoredGroup
from lpo_ray.run.evaluator import EvaluationSettings, Evaluator
from lpo_ray.run.settings import evaluation_settings
from lpo_ray.run.spec import make_spec
from tests.support.fakes import FakeComponents, FakeSource

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


class Lent(FakeComponents):
    """An engine that samples when it is told to."""

    error: Exception | None = None

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return await super().sample(prompt, sampling, attempt)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.go = asyncio.Event()


class Lending(FakeComponents):
    """Has an engine to spare. ``step`` is that of the lent one for as long as it is lent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.engine, self.is_lent, self.spare = Lent(), False, True

    def lend(self) -> contextlib.AbstractAsyncContextManager[RolloutEngine] | None:
        if not self.spare:
            return None
        self.engine.step, self.is_lent = self.step, True
        return self._lent()

    @contextlib.asynccontextmanager
    async def _lent(self) -> AsyncIterator[RolloutEngine]:
        try:
            yield self.engine
        finally:
            self.is_lent = False

    async def score(self, group: PromptGroup) -> ScoredGroup:
        passes = np.full(len(group.responses), float(group.responses[0].versions[0]), np.float32)
        return ScoredGroup(group, passes)


@dataclass
class FakeRecord:
    found: dict[int, Evaluation] = field(default_factory=dict)
    waited: int = 0
    notes: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        assert name == "evaluate"
        self.waited += 1
        yield

    def has_evaluated(self, step: int) -> bool:
        return step in self.found

    def evaluating(self, done: int, total: int) -> None:
        pass

    async def evaluated(self, step: int, evaluation: Evaluation) -> None:
        self.found[step] = evaluation

    def note(self, text: str) -> None:
        self.notes.append(text)


def settings_of(*overrides: str) -> EvaluationSettings:
    base = ["run.name=never_begun", "evaluation.samples_per_prompt=4", "evaluation.ks=[1]"]
    return evaluation_settings(make_spec(load_config(QUICKSTART, [*base, *overrides])))


def make(*overrides: str) -> tuple[Evaluator, Lending, FakeRecord]:
    parts, record = Lending(), FakeRecord()
    return Evaluator(settings_of(*overrides), parts, FakeSource().heldout(5), record), parts, record


async def test_the_run_goes_on_while_the_weights_of_that_step_are_evaluated() -> None:
    evaluator, parts, record = make()
    parts.step = 1
    await evaluator.during(1)
    assert parts.is_lent
    parts.step = 7  # the others have newer weights by now
    parts.engine.go.set()
    await evaluator.finish()
    assert not parts.is_lent
    assert record.waited == 0
    assert record.found[1].pass_at == {1: 1.0}, "version 1 was sampled from"
    assert evaluator.done == record.found


@pytest.mark.parametrize("overrides", [("evaluation.lend_worker=false",), ("checkpoint.best=reward",), ()])
async def test_where_none_is_lent_the_run_waits(overrides: tuple[str, ...]) -> None:
    evaluator, parts, record = make(*overrides)
    parts.spare = bool(overrides)
    await evaluator.during(1)
    assert (record.waited, list(record.found)) == (1, [1])


async def test_the_next_one_waits_for_the_one_before_it() -> None:
    evaluator, parts, record = make()
    await evaluator.during(1)
    second = asyncio.ensure_future(evaluator.during(2))
    await asyncio.sleep(0.01)
    assert not second.done()
    assert "the run waits for an evaluation" in record.notes[0]
    parts.engine.go.set()
    await second
    await evaluator.finish()
    assert list(record.found) == [1, 2]


async def test_what_is_on_record_is_not_done_again_and_without_prompts_there_is_none() -> None:
    evaluator, parts, record = make()
    await evaluator.now(3)
    await evaluator.during(3)
    assert not parts.is_lent
    assert record.waited == 1
    nothing = Evaluator(settings_of(), parts, [], record)
    await nothing.during(4)
    await nothing.now(4)
    assert list(record.found) == [3]


async def test_an_engine_that_is_lost_costs_its_evaluation_and_not_the_run() -> None:
    evaluator, parts, record = make()
    parts.engine.error = ComponentDied("rollout worker 1", "killed")
    await evaluator.during(1)
    parts.engine.go.set()
    await evaluator.finish()
    assert record.found == {}
    assert record.notes[-1] == "the evaluation after step 1 is given up: rollout worker 1 died: killed"
    assert not parts.is_lent


async def test_any_other_error_ends_the_run_when_it_looks() -> None:
    evaluator, parts, _ = make()
    parts.engine.lose = {f"heldout-{number:08d}": 99 for number in range(5)}
    parts.engine.go.set()
    await evaluator.during(1)
    with pytest.raises(TooManyLost):
        await evaluator.during(2)


async def test_a_run_that_ends_gives_the_engine_back() -> None:
    evaluator, parts, record = make()
    with pytest.raises(RuntimeError):
        async with evaluator.opened():
            await evaluator.during(1)
            raise RuntimeError
    assert not parts.is_lent
    assert record.found == {}
