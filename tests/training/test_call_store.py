"""The record of agents' calls: what comes back of it, to whom, and when it is forgotten."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.records import Answered, Call, ConversationId, Prompt, PromptGroup, Sampling, Turn, WeightsVersion
from lpo_ray.training.call_store import FILE, CallStore, call_from_bytes, call_to_bytes, read_calls
from lpo_ray.training.ledger import Ledger
from lpo_ray.training.loop import TrainingLoop
from tests.support.builders import make_scored
from tests.support.fakes import FakeComponents, FakeObserver, FakeSource
from tests.support.loops import loop_settings

SAMPLING = Sampling(2, 1.0, 8, 0)


def call(number: int = 0, *context: int, version: int = 0, request: bytes = b"") -> Answered:
    ids = np.array(context or (1, 2, 3))
    asked = Call(number, ids, request or f"request {number}".encode(), 5, ("stop",), "rewritten", "tool")
    return Answered(asked, Turn(np.array([7, 8]), np.array([-1.5, -0.25], np.float32), np.full(2, version), "stop", 3))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CallStore]:
    made = CallStore(tmp_path / FILE)
    yield made
    made.close()


def requests(found: list[Answered]) -> list[bytes]:
    return [answered.call.request for answered in found]


@given(
    context=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9),
    request=st.binary(max_size=20),
    max_tokens=st.none() | st.integers(1, 9),
    stop=st.lists(st.text(max_size=4), max_size=3),
    author=st.text(max_size=5),
    ids=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9),
    finish=st.sampled_from(["stop", "length"]),
    engine=st.none() | st.integers(0, 9),
)
def test_a_call_comes_back_as_it_was(
    context: list[int], request: bytes, max_tokens: int | None, stop: list[str], author: str, ids: list[int],
    finish: str, engine: int | None,
) -> None:  # fmt: skip
    asked = Call(4, np.array(context), request, max_tokens, tuple(stop), "why", author)
    logprobs = np.linspace(-3, 0, len(ids), dtype=np.float32)
    turn = Turn(np.array(ids), logprobs, np.arange(len(ids)), finish, engine)  # type: ignore[arg-type]
    found = call_from_bytes(call_to_bytes(Answered(asked, turn)))
    for one, other in ((found.call, asked), (found.turn, turn)):
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b


def test_the_next_attempt_gets_what_those_before_were_answered_the_last_one_first(store: CallStore) -> None:
    for attempt, number in ((0, 0), (0, 1), (0, 2), (1, 0)):
        store.add(ConversationId("p", attempt, 1), call(number, request=b"%d %d" % (attempt, number)), SAMPLING)
    store.add(ConversationId("p", 0, 0), call(request=b"other"), SAMPLING)
    store.add(ConversationId("q", 0, 1), call(), SAMPLING)
    found = store.before("p", 2, SAMPLING)
    assert requests(found[1]) == [b"1 0", b"0 0", b"0 1", b"0 2"]
    assert requests(found[0]) == [b"other"]
    assert requests(store.before("p", 1, SAMPLING)[1]) == [b"0 0", b"0 1", b"0 2"]
    assert store.before("p", 0, SAMPLING) == {}


def test_what_was_drawn_otherwise_is_no_answer(store: CallStore) -> None:
    store.add(ConversationId("p", 0, 0), call(), SAMPLING)
    assert not store.before("p", 1, dataclasses.replace(SAMPLING, temperature=0.5))
    assert store.before("p", 1, dataclasses.replace(SAMPLING, group_size=9, max_turns=2))


def test_a_first_attempt_begins_without_any(store: CallStore) -> None:
    async def main() -> None:
        await store.put(ConversationId("p", 0, 0), call(), SAMPLING)
        assert await store.begin("p", 1, SAMPLING)
        assert await store.begin("p", 0, SAMPLING) == {}
        assert await store.begin("p", 1, SAMPLING) == {}
        await store.put(ConversationId("p", 1, 0), call(), SAMPLING)
        await store.forget("p")
        assert await store.begin("p", 2, SAMPLING) == {}

    asyncio.run(main())


def test_a_run_that_goes_back_forgets_newer_answers(store: CallStore) -> None:
    for version in range(4):
        store.add(ConversationId("p", 0, version), call(version=version), SAMPLING)
    store.remove_newer(1)
    assert sorted(store.before("p", 1, SAMPLING)) == [0, 1]


def _writes(path: Path) -> None:
    store = CallStore(path)
    for number in range(10**6):
        store.add(ConversationId("p", 0, 0), call(number), SAMPLING)
        (path.parent / "answered").write_text(str(number))  # the agent is answered


def test_what_an_agent_was_answered_outlives_a_kill(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_writes, args=(tmp_path / FILE,))
    process.start()
    deadline = time.monotonic() + 20
    while not (tmp_path / "answered").exists() or int((tmp_path / "answered").read_text() or 0) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    answered = int((tmp_path / "answered").read_text() or 0)
    found = read_calls(tmp_path, "p")[0][0]
    assert [each.call.number for each in found][: answered + 1] == list(range(answered + 1))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.sqlite", calls=CallStore(tmp_path / FILE))
    yield made
    made.close()


def begun(ledger: Ledger, number: int) -> ConversationId:
    """Issue a prompt, one of whose calls is answered."""
    assert ledger.calls is not None
    attempt = ledger.issue(number, f"train-{number:08d}", 60.0)
    name = ConversationId(f"train-{number:08d}", attempt, 0)
    ledger.calls.add(name, call(), SAMPLING)
    return name


def test_the_ledger_forgets_calls_with_the_attempts_that_nobody_repeats(ledger: Ledger) -> None:
    assert ledger.calls is not None
    lost, unscored, filtered, flying = (begun(ledger, number) for number in range(4))
    evaluated = ConversationId("heldout-00000000", 0, 0)
    ledger.calls.add(evaluated, call(), SAMPLING)
    ledger.lost(lost.key, "its process died")
    ledger.unscored(unscored.key, "its agent raised")
    assert unscored.prompt_id not in ledger.calls.prompts()
    ledger.filtered(filtered.key, "on purpose")
    ledger.sync()
    assert ledger.calls.prompts() == {lost.prompt_id, flying.prompt_id}


def test_trained_and_stale_groups_need_no_calls(ledger: Ledger) -> None:
    assert ledger.calls is not None
    for number in range(2):
        name = begun(ledger, number)
        scored = make_scored(number)
        assert scored.group.key == name.key
        ledger.sampled(name.key)
        ledger.scored(scored)
    ledger.stale(("train-00000001", 0), "too old")
    assert ledger.calls.prompts() == {"train-00000000"}
    ledger.sync()
    with ledger.step(WeightsVersion(1, "digest"), [("train-00000000", 0)]):
        pass
    ledger.sync()
    assert ledger.calls.prompts() == set()


def test_a_resume_keeps_what_was_cut_off_and_is_not_newer(ledger: Ledger) -> None:
    assert ledger.calls is not None
    name = begun(ledger, 0)
    ledger.calls.add(ConversationId(name.prompt_id, 0, 1), call(version=5), SAMPLING)
    ledger.resume(2)
    assert sorted(ledger.calls.before(name.prompt_id, 1, SAMPLING)) == [0]


class SlowStore(CallStore):
    """Takes its time to forget and to add."""

    def remove_attempts(self, prompt_id: str, last: int) -> None:
        time.sleep(0.2)
        super().remove_attempts(prompt_id, last)

    def add(self, conversation: ConversationId, answered: Answered, sampling: Sampling) -> None:
        time.sleep(0.2)
        super().add(conversation, answered, sampling)


class Answering(FakeComponents):
    """An engine that keeps a call of each attempt, and sees what the one before left."""

    def __init__(self, store: CallStore, **settings: Any) -> None:
        super().__init__(**settings)
        self._store, self.found = store, Counter[tuple[int, int]]()

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        before = await self._store.begin(prompt.prompt_id, attempt, SAMPLING)
        self.found[attempt, len(before)] += 1
        await self._store.put(ConversationId(prompt.prompt_id, attempt, 0), call(), SAMPLING)
        return await super().sample(prompt, sampling, attempt)


@pytest.mark.parametrize(("fate", "kept"), [("unscored", 0), ("lose", 1)])
async def test_an_attempt_that_stayed_unscored_is_forgotten_before_the_next_begins(
    fate: str, kept: int, tmp_path: Path
) -> None:
    store = SlowStore(tmp_path / FILE)
    ledger = Ledger(tmp_path / "ledger.sqlite", calls=store)
    parts = Answering(store, **{fate: {"train-00000001": 1}})
    loop = TrainingLoop(parts, FakeSource(), ledger, loop_settings(tmp_path, steps=1), FakeObserver())
    await asyncio.wait_for(loop.run(WeightsVersion(0, "first")), 20)
    assert {name: count for name, count in parts.found.items() if name[0]} == {(1, kept): 1}
    ledger.close()


async def test_what_was_being_kept_when_it_was_cancelled_is_there_to_be_forgotten(tmp_path: Path) -> None:
    store = SlowStore(tmp_path / FILE)
    putting = asyncio.ensure_future(store.put(ConversationId("p", 0, 0), call(), SAMPLING))
    await asyncio.sleep(0.05)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert store.prompts() == {"p"}
    await store.forget("p")
    await asyncio.sleep(0.3)
    assert store.prompts() == set()
    store.close()
