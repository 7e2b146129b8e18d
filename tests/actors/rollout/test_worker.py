"""Turns of a worker, over an engine made by hand: seeds, parts that are taken back, weights that are not proved."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from actors.rollout.inflight import TAKEN_BACK
from actors.rollout.worker import RolloutWorker
from lpo_ray.common.seeds import derive_seed
from lpo_ray.config.schema import Inflight
from lpo_ray.errors import GroupLost
from lpo_ray.records import ConversationId, Prompt, Sampling, TurnRequest

SAMPLING = Sampling(group_size=2, temperature=1.0, max_tokens=6, seed=5)
PROMPT = Prompt("p0", np.array([1, 2]), "", "countdown")


class Engine:
    """Answers with the reasons it is given, one token for each call; 'refuse' is what vLLM refuses."""

    def __init__(self, *reasons: str) -> None:
        self.reasons, self.sampled = list(reasons), 0
        self.asked: list[tuple[list[int], int, int]] = []

    async def generate(self, request_id: str, token_ids: Sequence[int], params: SimpleNamespace) -> SimpleNamespace:
        await asyncio.sleep(0)
        self.asked.append((list(token_ids), params.max_tokens, params.seed))
        self.stops = (params.stop, params.detokenize)
        reason = self.reasons.pop(0) if self.reasons else "stop"
        if reason == "refuse":
            raise ValueError("too long")
        output = SimpleNamespace(
            token_ids=[50 + len(self.asked)], logprobs=SimpleNamespace(logprobs=[-0.5]), finish_reason=reason,
            weight_versions=[SimpleNamespace(version=str(len(self.asked)), start=0, end=1)],
        )  # fmt: skip
        return SimpleNamespace(outputs=[output])

    def check(self) -> None:
        pass


async def worker_over(engine: Engine, *, released: bool = True) -> RolloutWorker:
    worker = RolloutWorker("rollout worker 0", SimpleNamespace(inflight=Inflight.finish), "gloo")
    worker._engine, worker._released = engine, asyncio.Event()
    worker._params, worker._kind = SimpleNamespace, SimpleNamespace(FINAL_ONLY=None)
    if released:
        worker._released.set()
    return worker


def request(turn: int = 1, draw: int = 0) -> TurnRequest:
    return TurnRequest(ConversationId("p0", 3, 1), turn, np.array([1, 2, 9]), SAMPLING, 4, 0, draw=draw)


async def test_single_answers_and_first_turns_have_the_seeds_they_always_had() -> None:
    engine = Engine()
    group = await (await worker_over(engine)).sample(PROMPT, SAMPLING, 3)
    assert [seed for _, _, seed in engine.asked] == [derive_seed(5, "p0", 3, k) for k in range(2)]
    assert [response.token_ids.tolist() for response in group.responses] == [[51], [52]]
    first = Engine()
    await (await worker_over(first)).turn(request(turn=0))
    assert first.asked[0][2] == derive_seed(5, "p0", 3, 1)
    parts = Engine(TAKEN_BACK, "stop")
    await (await worker_over(parts)).sample(PROMPT, Sampling(1, 1.0, 6, 5), 3)
    assert [seed for _, _, seed in parts.asked] == [derive_seed(5, "p0", 3, 0), derive_seed(5, "p0", 3, 0, 1)]


async def test_an_engine_reads_text_only_to_find_the_strings_that_end_a_turn() -> None:
    engine = Engine()
    worker = await worker_over(engine)
    await worker.turn(request())
    assert engine.stops == ([], False)
    await worker.turn(replace(request(), stop=("Observation:",)))
    assert engine.stops == (["Observation:"], True)


async def test_no_two_turns_draws_or_parts_share_a_seed() -> None:
    seeds = [request(turn, draw).seed(part) for turn in range(4) for draw in range(3) for part in range(4)]
    assert len(set(seeds)) == len(seeds)


async def test_a_turn_goes_on_behind_what_was_taken_back_of_it() -> None:
    engine = Engine(TAKEN_BACK, TAKEN_BACK, "stop")
    turn = await (await worker_over(engine)).turn(request())
    assert [(ids, most) for ids, most, _ in engine.asked] == [
        ([1, 2, 9], 4), ([1, 2, 9, 51], 3), ([1, 2, 9, 51, 52], 2),
    ]  # fmt: skip
    assert turn.token_ids.tolist() == [51, 52, 53]
    assert turn.versions.tolist() == [1, 2, 3]
    assert turn.finish_reason == "stop"


async def test_nothing_is_given_out_of_weights_that_are_not_proved() -> None:
    worker = await worker_over(engine := Engine(), released=False)
    task = asyncio.ensure_future(worker.turn(request()))
    await asyncio.sleep(0.01)
    assert engine.asked == []
    assert (await worker.progress()).is_idle
    worker._released.set()
    await asyncio.sleep(0)
    worker._released.clear()  # an update begins while it decodes
    await asyncio.sleep(0.01)
    assert engine.asked
    assert not task.done()
    worker._released.set()
    assert (await task).finish_reason == "stop"


async def test_a_group_is_held_until_the_last_of_its_turns_has_ended() -> None:
    worker = await worker_over(Engine(), released=False)
    tasks = [asyncio.ensure_future(worker.turn(request(turn))) for turn in (1, 2)]
    await asyncio.sleep(0)
    assert (await worker.progress()).holds == {("p0", 3)}
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    assert (await worker.progress()).holds == {("p0", 3)}
    tasks[1].cancel()
    await asyncio.sleep(0.01)
    assert (await worker.progress()).holds == frozenset()


async def test_what_the_engine_refuses_loses_the_group() -> None:
    with pytest.raises(GroupLost, match="rollout worker 0: too long"):
        await (await worker_over(Engine("refuse"))).turn(request())
