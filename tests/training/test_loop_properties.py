"""The real loop, gate, ledger and checkpoints with fake components in virtual time; hypothesis drives what happens."""

from __future__ import annotations

import asyncio
import itertools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lpo_ray.common.silence import retrieve_exception
from lpo_ray.errors import ComponentDied, GroupLost, LearnerLost
from lpo_ray.records import (
    Anchor,
    Prompt,
    PromptGroup,
    Publication,
    Response,
    Sampling,
    ScoredGroup,
    StepReport,
    TrainBatch,
    WeightsVersion,
)
from lpo_ray.run.signals import first_cause
from lpo_ray.tools.simulate.virtual_time import run
from lpo_ray.training.ledger import Ledger
from lpo_ray.training.ledger_audit import audit
from lpo_ray.training.loop import TrainingLoop
from tests.support.fakes import FakeComponents, FakeObserver, FakeSource
from tests.support.loops import loop_settings

T = TypeVar("T")
LEASE = 50.0
STEPS, GROUPS = 5, 4
FATES = ("answers", "answers", "answers", "answers", "is lost", "hangs", "answers late", "stays unscored")


@dataclass(frozen=True)
class Weather:
    """What happens, event by event; each list is repeated without end."""

    delays: list[float]
    disk: list[float]
    """seconds that the ledger takes for each of its notes"""
    fates: list[str]
    equal: list[bool]
    strikes: list[bool]
    """whether the learner is lost in the next of its calls"""


class Storm(FakeComponents):
    """Every call takes a time of its own; samples meet fates; an answer may come although its attempt was given up."""

    def __init__(self, weather: Weather, step: int = 0) -> None:
        super().__init__(step=step)
        self._delays, self._fates = itertools.cycle(weather.delays), itertools.cycle(weather.fates)
        self._equal = itertools.cycle(weather.equal)
        self._strikes = itertools.chain(weather.strikes, itertools.repeat(False))  # nor does lightning
        self.learner_at: int | None = step
        """the commit whose weights the learner has; None: it is lost"""
        self.moved = False
        """whether it has learned since"""
        self.recoveries = 0
        self._unscored: set[tuple[str, int]] = set()

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        fate, first = next(self._fates) if attempt < 5 else "answers", self.step  # no storm lasts for ever
        if fate == "hangs":
            await asyncio.Event().wait()
        try:
            await asyncio.sleep(next(self._delays) + (2 * LEASE if fate == "answers late" else 0))
        except asyncio.CancelledError:
            if fate != "answers late":
                raise
        if fate == "is lost":
            raise GroupLost(prompt.prompt_id, attempt, "the storm took it")
        if fate == "stays unscored":
            self._unscored.add((prompt.prompt_id, attempt))
        versions = np.array([first, self.step])  # its second token may be of newer weights
        responses = tuple(
            Response(np.array([1, 2]), np.zeros(2, np.float32), versions, "stop") for _ in range(sampling.group_size)
        )
        return PromptGroup(prompt, attempt, responses)

    async def score(self, group: PromptGroup) -> ScoredGroup:
        await asyncio.sleep(next(self._delays))
        if group.key in self._unscored:
            raise GroupLost(*group.key, "unscored")
        rewards = np.zeros(2, np.float32) if next(self._equal) else np.array([0, 1], np.float32)
        return ScoredGroup(group, rewards)

    def _strike(self) -> None:
        if self.learner_at is None or next(self._strikes):
            self.learner_at = None
            raise LearnerLost("learner rank 1", "lightning")

    async def log_ratios(self, groups: Sequence[ScoredGroup]) -> Anchor:
        self._strike()
        return await super().log_ratios(groups)

    async def project(self, batch: TrainBatch) -> StepReport:
        await asyncio.sleep(next(self._delays))
        self._strike()
        assert (self.learner_at, self.moved) == (batch.step, False)  # exactly the weights of the last commit
        self.moved = True
        return await super().project(batch)

    async def publish(self, step: int) -> Publication:
        await asyncio.sleep(next(self._delays))
        self._strike()
        assert (self.learner_at, self.moved) == (step - 1, True)
        self.learner_at, self.moved = step, False
        return await super().publish(step)

    async def save(self, folder: Path) -> None:
        self._strike()
        await super().save(folder)

    async def recover(self, lost: LearnerLost) -> None:
        """What run.py does: the learner comes back with the weights of the last commit, unless it is struck again."""
        await asyncio.sleep(next(self._delays))
        if next(self._strikes):
            raise LearnerLost("learner rank 0", "lightning again")
        self.recoveries += 1
        self.learner_at, self.moved = self.step, False


class Slow(Ledger):
    """A ledger whose thread takes its time."""

    def __init__(self, path: Path, delays: list[float]) -> None:
        super().__init__(path)
        self._delays, self._last = itertools.cycle(delays), None

    def in_turn(self, method: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        async def call(before: asyncio.Future[object] | None) -> T:
            if before is not None:
                await asyncio.wait({before})
            await asyncio.sleep(next(self._delays))
            return method(*arguments)

        self._last = asyncio.ensure_future(call(self._last))
        self._last.add_done_callback(retrieve_exception)  # whoever asked may be gone, and the ledger closed
        return asyncio.shield(self._last)


weathers = st.builds(
    Weather,
    st.lists(st.floats(0, 20), min_size=1, max_size=12),
    st.lists(st.sampled_from([0.0, 0.0, 0.1, 7.0]), min_size=1, max_size=5),
    st.lists(st.sampled_from(FATES), min_size=1, max_size=15),
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.lists(st.booleans(), max_size=12),
)
pipelines = st.fixed_dictionaries(
    {
        "max_staleness": st.integers(0, 3),
        "oversample_groups": st.integers(0, 2),
        "drop_equal_rewards": st.booleans(),
        "refill_groups": st.integers(0, 4),
        "reused_groups_per_step": st.integers(0, 2),
        "behaviour_from_engine": st.booleans(),
    }
)
kills = st.lists(st.floats(1, 300), max_size=3)


CALM = {
    "max_staleness": 0, "oversample_groups": 1, "drop_equal_rewards": False, "refill_groups": 0,
    "reused_groups_per_step": 0, "behaviour_from_engine": False,
}  # fmt: skip


@settings(max_examples=150)
@example(Weather([19.0], [7.0], ["answers", "hangs"], [False], []), CALM, [])  # a lease, with the ledger's own time
@given(weathers, pipelines, kills)
def test_whatever_happens_the_promises_hold(
    tmp_path_factory: pytest.TempPathFactory, weather: Weather, pipeline: dict[str, object], kills: list[float]
) -> None:
    """Killed and resumed any number of times, its learner lost at any call, the run ends (no deadlock: virtual time
    would raise it), staleness keeps to its bound, no group is trained twice, none vanishes, what is held is bounded.
    """
    folder = tmp_path_factory.mktemp("run")
    chosen = loop_settings(folder, steps=STEPS, lease_seconds=LEASE, max_attempts=10, **pipeline)
    observer = FakeObserver()

    async def until(seconds: float | None) -> bool:
        ledger = Slow(folder / "ledger.sqlite", weather.disk)
        done = len(ledger.commits_after(0))  # the steps since a checkpoint are computed again: here that is no work
        version, owed = WeightsVersion(done, f"digest-{done}"), ledger.resume(done)
        loop = TrainingLoop(storm := Storm(weather, done), FakeSource(), ledger, chosen, observer)
        try:
            async with asyncio.timeout(seconds):
                await loop.run(version, owed, saved=done, recover=storm.recover)
        except TimeoutError:
            return False
        finally:
            ledger.close()
        return True

    for seconds in (*kills, None):
        if run(until(seconds)):
            break
    assert [record.step for record in observer.steps] == list(range(1, STEPS + 1))
    bound, capacity = chosen.selection.max_staleness, chosen.sample.capacity
    for record in observer.steps:
        assert all(record.step - 1 - target.group.oldest_version <= bound for target in record.targets)
        assert 1 <= len(record.targets) <= GROUPS + record.reused
        assert record.groups["in_flight"] <= capacity
    fresh = [
        target.group.key
        for record in observer.steps
        for target in record.targets[: len(record.targets) - record.reused]
    ]
    assert len(fresh) == len(set(fresh)) == len({prompt_id for prompt_id, _ in fresh})
    books = audit(folder)
    assert books.violations == ()
    assert books.steps == STEPS
    assert books.attempts["trained"] == len(fresh)
    assert books.attempts["issued"] == books.attempts["sampled"] == 0


CALLS = ("sample", "score", "build", "log_ratios", "project", "publish", "save", "train")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("at", [1, 7])
def test_a_crash_of_any_component_ends_the_run_with_its_own_traceback(tmp_path: Path, call: str, at: int) -> None:
    calls = itertools.count(1)

    class Crash(RuntimeError):
        pass

    def the_culprit() -> None:
        if next(calls) == at:
            raise Crash(f"{call} broke")

    parts, source = FakeComponents(), FakeSource()
    owner = source if call == "train" else parts
    original = getattr(owner, call)
    if call == "train":
        owner.train = lambda index: (the_culprit(), original(index))[1]
    else:

        async def broken(*arguments: object) -> object:
            the_culprit()
            return await original(*arguments)

        setattr(owner, call, broken)

    async def main() -> None:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        chosen = loop_settings(tmp_path, steps=20, max_staleness=1, behaviour_from_engine=True, checkpoint_every=1)
        await TrainingLoop(parts, source, ledger, chosen, FakeObserver()).run(WeightsVersion(0, "digest-0"))

    with pytest.raises(BaseExceptionGroup) as caught:
        run(main())
    cause = first_cause(caught.value)
    assert isinstance(cause, Crash)
    assert "the_culprit" in "".join(traceback.format_exception(cause))


def test_an_answer_that_comes_after_its_lease_is_discarded(tmp_path: Path) -> None:
    weather = Weather([1.0], [0.0], ["answers late", *["answers"] * 30], [False], [])
    observer = FakeObserver()

    async def main() -> None:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        chosen = loop_settings(tmp_path, steps=2, lease_seconds=LEASE)
        await TrainingLoop(Storm(weather), FakeSource(), ledger, chosen, observer).run(WeightsVersion(0, "digest-0"))

    run(main())
    assert [(lost.prompt_id, lost.attempt) for lost in observer.losses] == [("train-00000000", 0)]
    assert "nothing was heard of it within its lease of 50 s" in observer.losses[0].reason
    attempts = {target.group.key for target in observer.steps[0].targets}
    assert ("train-00000000", 1) in attempts
    assert audit(tmp_path).violations == ()


def test_a_short_step_is_trained_when_the_budget_for_refills_is_spent(tmp_path: Path) -> None:
    weather = Weather([1.0], [0.0], ["answers"], [True, True, True, True, True, True, False, False], [])
    observer = FakeObserver()

    async def main() -> None:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        chosen = loop_settings(tmp_path, steps=1, drop_equal_rewards=True, refill_groups=3)
        await TrainingLoop(Storm(weather), FakeSource(), ledger, chosen, observer).run(WeightsVersion(0, "digest-0"))

    run(main())
    (record,) = observer.steps
    assert len(record.targets) == 1
    assert record.left_out == {"equal_rewards": 6, "off_policy": 0, "cut": 0, "unscored": 0}
    assert [update.num_prompts for update in record.batch.updates] == [1]
    books = audit(tmp_path)
    assert (books.attempts["trained"], books.attempts["filtered"]) == (1, 6)
    assert books.reasons == (("filtered", "all rewards are equal", 6),)


def test_a_step_whose_groups_are_all_equal_trains_those(tmp_path: Path) -> None:
    observer = FakeObserver()

    async def main() -> None:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        chosen = loop_settings(tmp_path, steps=1, drop_equal_rewards=True, refill_groups=0)
        storm = Storm(Weather([1.0], [0.0], ["answers"], [True], []))
        await TrainingLoop(storm, FakeSource(), ledger, chosen, observer).run(WeightsVersion(0, "digest-0"))

    run(main())
    assert len(observer.steps[0].targets) == GROUPS


def test_stragglers_are_cut_when_the_step_has_its_groups(tmp_path: Path) -> None:
    weather = Weather([1.0], [0.0], ["answers", "answers", "answers late", "answers", "answers"], [False], [])
    observer = FakeObserver()

    async def main() -> float:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        chosen = loop_settings(tmp_path, steps=2, oversample_groups=1)
        await TrainingLoop(Storm(weather), FakeSource(), ledger, chosen, observer).run(WeightsVersion(0, "digest-0"))
        return asyncio.get_running_loop().time()

    assert run(main()) < LEASE
    assert [record.left_out["cut"] for record in observer.steps] == [1, 1]
    books = audit(tmp_path)
    assert books.violations == ()
    assert books.reasons[0] == ("filtered", "late when step N had its groups", 2)


def test_a_group_far_from_the_policy_is_dropped_replaced_and_issued_again(tmp_path: Path) -> None:
    class Drifted(FakeComponents):
        async def log_ratios(self, groups: Sequence[ScoredGroup]) -> Anchor:
            self.events.append(f"anchor {len(groups)}")
            found = await super().log_ratios(groups)
            far = ("train-00000002", 0)
            return tuple(
                type(anchor)(np.array([9, 0], np.float32), anchor.drift, anchor.mismatch_kl)
                if scored.group.key == far
                else anchor
                for scored, anchor in zip(groups, found, strict=True)
            )

    parts, observer = Drifted(), FakeObserver()

    async def main() -> None:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        chosen = loop_settings(tmp_path, steps=2, behaviour_from_engine=True, min_ess=0.9)
        await TrainingLoop(parts, FakeSource(), ledger, chosen, observer).run(WeightsVersion(0, "digest-0"))

    run(main())
    assert [event for event in parts.events if event.startswith("anchor ")] == ["anchor 4", "anchor 1", "anchor 4"]
    assert ("train-00000002", 1) in {target.group.key for target in observer.steps[0].targets}
    assert observer.steps[0].left_out["off_policy"] == 1
    books = audit(tmp_path)
    assert books.violations == ()
    assert (books.attempts["stale"], books.prompts["stale"]) == (1, 0)


def test_a_learner_lost_while_it_is_saved_and_asked_at_once_is_brought_back_once(tmp_path: Path) -> None:
    weather = Weather([1.0], [0.0], ["answers"], [False], [False] * 4 + [True] + [False] * 200)
    storm, observer = Storm(weather), FakeObserver()
    chosen = loop_settings(tmp_path, steps=6, max_staleness=1, behaviour_from_engine=True, checkpoint_every=1)

    async def main() -> None:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        loop = TrainingLoop(storm, FakeSource(), ledger, chosen, observer)
        await loop.run(WeightsVersion(0, "digest-0"), recover=storm.recover)
        ledger.close()

    run(main())
    assert storm.recoveries == 1
    assert [record.step for record in observer.steps] == list(range(1, 7))
    assert audit(tmp_path).attempts["lost"] == 0


def test_without_a_way_back_a_lost_learner_ends_the_run(tmp_path: Path) -> None:
    storm = Storm(Weather([1.0], [0.0], ["answers"], [False], [False, True]))

    async def main() -> None:
        ledger = Ledger(tmp_path / "ledger.sqlite")
        chosen = loop_settings(tmp_path, steps=6)
        await TrainingLoop(storm, FakeSource(), ledger, chosen, FakeObserver()).run(WeightsVersion(0, "digest-0"))

    with pytest.raises(BaseExceptionGroup) as caught:
        run(main())
    assert isinstance(first_cause(caught.value), ComponentDied)


class Patient(FakeComponents):
    """An engine whose groups take many leases, and that gives signs of life until it falls silent."""

    def __init__(self, seconds: float, silent_from: float) -> None:
        super().__init__(sample_seconds=seconds)
        self._silent_from = silent_from

    def silence_of(self, key: tuple[str, int]) -> float:
        return max(0.0, asyncio.get_running_loop().time() - self._silent_from)


def test_a_lease_is_renewed_by_signs_of_life_and_by_nothing_else(tmp_path: Path) -> None:
    """Twenty leases long, which is no matter while something is heard; lost one lease after the last sign otherwise."""

    async def main(folder: Path, silent_from: float) -> list[GroupLost]:
        folder.mkdir()
        observer, ledger = FakeObserver(), Ledger(folder / "ledger.sqlite")
        chosen = loop_settings(folder, steps=1, lease_seconds=LEASE, max_attempts=1)
        loop = TrainingLoop(Patient(20 * LEASE, silent_from), FakeSource(), ledger, chosen, observer)
        try:
            await loop.run(WeightsVersion(0, "digest-0"))
        finally:
            ledger.close()
            if observer.losses:
                assert asyncio.get_running_loop().time() == pytest.approx(silent_from + LEASE)
        return observer.losses

    assert run(main(tmp_path / "heard", 1e9)) == []
    with pytest.raises(ExceptionGroup) as caught:
        run(main(tmp_path / "silent", 3.3 * LEASE))
    assert "the last time so: nothing was heard of it within its lease of 50 s" in str(first_cause(caught.value))
