"""Conversations of a group: segments, limits, ends, losses; and many of them on engines that come and go."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.errors import ComponentDied, GroupLost, Unscored
from lpo_ray.records import (
    ConversationId,
    Observation,
    Prompt,
    PromptGroup,
    Response,
    Sampling,
    Turn,
    TurnRequest,
)
from lpo_ray.rollout.conversations import ConversationRollout
from lpo_ray.rollout.pool import DRAWS, RolloutPool
from lpo_ray.tools.simulate.virtual_time import run
from tests.support.conversations import END, FakeEnvironments, Speaker, contexts_of, done, drawn, said
from tests.support.turn_pools import Scene, in_scene

SAMPLING = Sampling(group_size=2, temperature=1.0, max_tokens=8, seed=0, max_turns=4)
PROMPT = Prompt("p0", np.array([1, 2, 3]), "", "countdown")


class OneEngine:
    """An engine that is always there."""

    def __init__(self) -> None:
        self.asked: list[TurnRequest] = []

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        raise NotImplementedError

    async def turn(self, request: TurnRequest) -> Turn:
        self.asked.append(request)
        await asyncio.sleep(0)
        return drawn(request)


def conducted(
    environments: FakeEnvironments, sampling: Sampling = SAMPLING, most_tokens: int = 1000
) -> tuple[PromptGroup, list[TurnRequest]]:
    engine = OneEngine()
    group = run(ConversationRollout(engine, environments, most_tokens).sample(PROMPT, sampling, 0))
    assert not environments.open_now
    assert set(environments.ended.values()) == {1}
    for k, response in enumerate(group.responses):
        check(group, k, response, environments, engine.asked)
    return group, engine.asked


def check(
    group: PromptGroup, k: int, response: Response, environments: FakeEnvironments, asked: list[TurnRequest]
) -> None:
    """The record is what the environment heard and what the engine was given, token by token."""
    name = ConversationId(*group.key, k)
    told = environments.told[name]
    turns = [ids for kind, ids in told.events if kind == "turn"]
    assert response.token_ids.tolist() == np.concatenate(turns).tolist()
    assert response.conversation is not None
    assert response.conversation.turns == tuple(map(len, turns))
    given_contexts = [request.context_ids.tolist() for request in asked if request.conversation == name]
    assert [ids.tolist() for ids in told.contexts()] == given_contexts
    runs = [ids.tolist() for ids in contexts_of(response, group.prompt.token_ids)]
    assert set(map(tuple, runs)) <= set(map(tuple, given_contexts))
    if all(len(ids) for kind, ids in told.events if kind == "appended"):
        assert runs == given_contexts


def test_an_answer_that_ends_at_once_is_one_segment_behind_the_prompt() -> None:
    group, asked = conducted(FakeEnvironments(lambda name, turn: done(1.0)))
    for response in group.responses:
        (segment,) = response.segments
        assert segment.context_ids is None
        assert segment.sampled.all()
        assert response.finish_reason == "stop"
        conversation = response.conversation
        assert conversation is not None
        assert (conversation.ended, conversation.authors, conversation.verdict.reward) == ("done", (), 1.0)
    assert [request.seed() for request in asked] == [
        TurnRequest(ConversationId("p0", 0, k), 0, PROMPT.token_ids, SAMPLING, 8).seed() for k in range(2)
    ]


def test_turns_are_one_segment_in_which_the_environment_s_tokens_are_not_sampled() -> None:
    environments = FakeEnvironments(lambda name, turn: said(50, 51, author="tool", seconds=0.5) if turn < 2 else done())
    group, _ = conducted(environments)
    conversation = group.responses[0].conversation
    assert conversation is not None
    (segment,) = conversation.segments
    assert (~segment.sampled).sum() == 4
    assert segment.token_ids[~segment.sampled].tolist() == [50, 51, 50, 51]
    assert len(conversation.turns) == 3
    assert conversation.authors == ("tool", "tool")
    assert conversation.environment_seconds == 1.0
    assert conversation.verdict is None


def test_a_history_that_is_rewritten_begins_a_segment_and_says_why() -> None:
    rewritten = Observation(None, context_ids=np.array([1, 2, 3, 90]), began="compacted", author="user")
    group, _ = conducted(FakeEnvironments(lambda name, turn: rewritten if turn == 0 else done()))
    first, second = group.responses[0].segments
    assert (first.began, first.context_ids, second.began) == ("", None, "compacted")
    assert second.context_ids is not None
    assert second.context_ids.tolist() == [1, 2, 3, 90]


def test_one_that_is_rewritten_to_what_it_was_goes_on() -> None:
    environments = FakeEnvironments(lambda name, turn: done())

    def grown(name: ConversationId, turn: int) -> Observation:
        if turn:
            return done()
        told = environments.told[name]
        now = np.concatenate([told.context, told.events[-1][1], [60]])
        return Observation(None, context_ids=now, began="it only says so")

    environments.answer = grown
    group, _ = conducted(environments)
    (segment,) = group.responses[0].segments
    assert segment.token_ids[~segment.sampled].tolist() == [60]


def test_one_that_is_rewritten_to_the_prompt_shares_it() -> None:
    back = Observation(None, context_ids=PROMPT.token_ids, began="begun anew")
    group, _ = conducted(FakeEnvironments(lambda name, turn: back if turn == 0 else done()))
    assert [segment.context_ids for segment in group.responses[0].segments] == [None, None]


def test_the_group_s_prompt_is_the_first_context_and_others_have_their_own() -> None:
    environments = FakeEnvironments(lambda name, turn: done(), first=lambda name: np.array([5, 6, 6 + name.response]))
    group, _ = conducted(environments)
    assert group.prompt.token_ids.tolist() == [5, 6, 6]
    assert group.prompt.prompt_id == "p0"
    assert group.responses[0].segments[0].context_ids is None
    assert group.responses[1].segments[0].context_ids.tolist() == [5, 6, 7]


def test_a_conversation_is_cut_at_its_turns_with_what_the_environment_says_of_its_last_state() -> None:
    environments = FakeEnvironments(lambda name, turn: dataclasses.replace(said(50), verdict=done(0.25).verdict))
    group, _ = conducted(environments)
    for response in group.responses:
        conversation = response.conversation
        assert conversation is not None
        assert (len(conversation.turns), conversation.ended, response.finish_reason) == (4, "turns", "length")
        assert conversation.verdict.reward == 0.25
        assert response.segments[-1].token_ids[-1] == END, "what was said behind the last turn leads nowhere"
        assert conversation.authors == ("user",) * 4


def test_a_turn_that_is_cut_ends_its_conversation() -> None:
    environments = FakeEnvironments(lambda name, turn: said(50))
    group, _ = conducted(environments, dataclasses.replace(SAMPLING, max_tokens=1, group_size=8))
    cut = [r.conversation for r in group.responses if r.conversation.ended == "length"]
    assert cut
    assert all(r.finish_reason == "length" for r in group.responses)


def test_a_conversation_is_cut_at_its_tokens_and_never_above() -> None:
    sampling = dataclasses.replace(SAMPLING, max_conversation_tokens=12, max_turns=100, group_size=8)
    for most in (1000, 12):
        limited = dataclasses.replace(sampling, max_conversation_tokens=12 if most == 1000 else None)
        group, asked = conducted(FakeEnvironments(lambda name, turn: said(50, 51)), limited, most)
        assert {r.conversation.ended for r in group.responses} == {"tokens"}
        assert all(len(request.context_ids) + request.max_tokens <= 12 for request in asked)
        for response in group.responses:
            assert 3 + len(response.segments[0].token_ids) <= 12


@pytest.mark.parametrize("length", [0, 12, 13])
def test_a_first_context_without_room_is_the_row_s_own_affair(length: int) -> None:
    environments = FakeEnvironments(lambda name, turn: done(), first=lambda name: np.ones(length, np.int64))
    with pytest.raises(Unscored, match=f"has {length} tokens; expected 1 to 11"):
        conducted(environments, most_tokens=12)
    assert not environments.open_now


def test_an_environment_that_neither_speaks_nor_ends_is_unscored() -> None:
    with pytest.raises(Unscored, match="is not done, and says nothing"):
        conducted(FakeEnvironments(lambda name, turn: Observation(None)))


@pytest.mark.parametrize(
    "error", [Unscored("p0", 0, "it raised"), GroupLost("p0", 0, "it died"), ComponentDied("e", "x")]
)
def test_one_that_fails_ends_all_of_its_group(error: GroupLost | ComponentDied) -> None:
    async def main() -> None:
        environments = FakeEnvironments(
            lambda name, turn: error if (name.response, turn) == (3, 1) else said(50),
            seconds=lambda name, turn: 1.0 if name.response == 3 else 1000.0,
        )
        rollout = ConversationRollout(OneEngine(), environments, 1000)
        sampling = dataclasses.replace(SAMPLING, group_size=6)
        with pytest.raises(type(error)):
            await rollout.sample(PROMPT, sampling, 0)
        assert asyncio.get_running_loop().time() < 10
        assert not environments.open_now
        assert sum(environments.ended.values()) == 6
        assert len(asyncio.all_tasks()) == 1

    run(main())


@pytest.mark.parametrize("after", [0.0, 0.5, 1.5, 2.5])
def test_cancelling_ends_every_environment(after: float) -> None:
    async def main() -> None:
        environments = FakeEnvironments(lambda name, turn: said(50), seconds=lambda name, turn: 1.0)
        task = asyncio.ensure_future(ConversationRollout(OneEngine(), environments, 1000).sample(PROMPT, SAMPLING, 0))
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not environments.open_now
        assert len(asyncio.all_tasks()) == 1

    run(main())


# On engines that come and go


def test_turns_go_to_the_engine_that_has_the_prefix_and_a_group_begins_on_one() -> None:
    async def work(pool: RolloutPool[Speaker]) -> None:
        environments = FakeEnvironments(
            lambda name, turn: said(50) if turn < 3 else done(), seconds=lambda name, turn: 0.1 + name.response
        )
        rollout = ConversationRollout(pool, environments, 1000)
        prompts = [dataclasses.replace(PROMPT, prompt_id=f"p{n}") for n in range(4)]
        await asyncio.gather(*(rollout.sample(prompt, SAMPLING, 0) for prompt in prompts))
        engines = [{request.conversation.key for request in speaker.asked} for speaker in scene.made]
        assert sorted(map(len, engines)) == [2, 2]
        assert not engines[0] & engines[1]
        assert scene.idle()

    scene = Scene(2, slots=4)
    in_scene(scene, work)


def test_turns_keep_their_engine_though_more_wait_than_engines_have_room_for() -> None:
    """Two thirds of the turns moved when whoever waited the longest got the next room, on whatever engine."""

    async def work(pool: RolloutPool[Speaker]) -> None:
        environments = FakeEnvironments(
            lambda name, turn: said(50) if turn < 5 else done(),
            seconds=lambda name, turn: (7 * name.response + 3 * turn + int(name.prompt_id[1:])) % 5 / 4,
        )
        rollout = ConversationRollout(pool, environments, 1000)
        sampling = dataclasses.replace(SAMPLING, group_size=4, max_turns=6)
        prompts = [dataclasses.replace(PROMPT, prompt_id=f"p{n}") for n in range(24)]
        groups = await asyncio.gather(*(rollout.sample(prompt, sampling, 0) for prompt in prompts))
        conversations = [response.conversation for group in groups for response in group.responses]
        later = sum(len(conversation.turns) - 1 for conversation in conversations)
        assert later > 400
        assert sum(conversation.moved for conversation in conversations) < 0.15 * later
        drawn_by = {r.conversation: set() for r in scene.asked()}
        for number, speaker in enumerate(scene.made):
            for request in speaker.asked:
                drawn_by[request.conversation].add(number)
        assert sum(len(engines) > 1 for engines in drawn_by.values()) == sum(c.moved > 0 for c in conversations)

    scene = Scene(3, slots=8, seconds=lambda r: 0.5 + float(np.random.default_rng(r.seed()).exponential(0.5)))
    in_scene(scene, work)


def test_one_that_has_no_room_is_not_waited_for() -> None:
    async def work(pool: RolloutPool[Speaker]) -> None:
        sampling = dataclasses.replace(SAMPLING, group_size=6)
        environments = FakeEnvironments(lambda name, turn: done())
        await ConversationRollout(pool, environments, 1000).sample(PROMPT, sampling, 0)
        assert sorted(len(speaker.asked) for speaker in scene.made) == [2, 4]

    scene = Scene(2, slots=4)
    in_scene(scene, work)


def test_a_turn_whose_engine_dies_is_drawn_again_elsewhere_and_what_was_said_stands() -> None:
    async def work(pool: RolloutPool[Speaker]) -> None:
        environments = FakeEnvironments(lambda name, turn: said(50) if turn < 2 else done())
        rollout = ConversationRollout(pool, environments, 1000)
        task = asyncio.ensure_future(rollout.sample(PROMPT, SAMPLING, 0))
        await asyncio.sleep(1.5)  # in the second turn
        holder = next(speaker for speaker in scene.made if speaker.asked)
        holder.kill()
        group = await task
        again = [request for request in scene.asked() if request.draw]
        assert {request.turn for request in again} == {1}
        assert len({request.seed() for request in scene.asked()}) == len(scene.asked()), "each draw has its own seed"
        for k, response in enumerate(group.responses):
            assert (response.conversation.redrawn, response.conversation.moved) == (1, 1)
            kept = [r for r in scene.asked() if r.conversation.response == k and (r.turn != 1 or r.draw)]
            check(group, k, response, environments, sorted(kept, key=lambda r: r.turn))
        assert scene.idle()

    scene = Scene(2)
    in_scene(scene, work)


def test_a_turn_that_kills_every_engine_loses_its_group() -> None:
    async def work(pool: RolloutPool[Speaker]) -> None:
        environments = FakeEnvironments(lambda name, turn: said(50))
        poison = ConversationRollout(pool, environments, 1000)

        async def killing() -> None:
            while True:
                await asyncio.sleep(0.25)
                for speaker in scene.made:
                    if any(request.turn == 1 for request in speaker.asked):
                        speaker.kill()

        killer = asyncio.ensure_future(killing())
        with pytest.raises(GroupLost, match=f"turn 1 was drawn {DRAWS} times, the last time so: rollout worker"):
            await poison.sample(PROMPT, dataclasses.replace(SAMPLING, group_size=1), 0)
        killer.cancel()
        assert len({request.conversation for request in scene.asked()}) == 1
        assert sum(request.turn == 1 for request in scene.asked()) == DRAWS
        assert not environments.open_now
        assert scene.idle()

    scene = Scene(4)
    in_scene(scene, work)


def test_an_engine_that_leaves_hands_its_turns_on() -> None:
    async def work(pool: RolloutPool[Speaker]) -> None:
        environments = FakeEnvironments(lambda name, turn: said(50) if turn < 1 else done())
        task = asyncio.ensure_future(ConversationRollout(pool, environments, 1000).sample(PROMPT, SAMPLING, 0))
        await asyncio.sleep(1)
        pool.scale(1)
        group = await task
        assert len(group.responses) == 2
        assert [status.name for status in pool.statuses()] == ["rollout worker 0"]

    scene = Scene(2, seconds=lambda request: 50.0 if request.draw == 0 else 1.0)  # longer than a leaver has
    in_scene(scene, work)


def test_silence_is_none_while_a_turn_waits_and_grows_at_an_engine() -> None:
    async def work(pool: RolloutPool[Speaker]) -> None:
        environments = FakeEnvironments(lambda name, turn: done())
        rollout = ConversationRollout(pool, environments, 1000)
        tasks = [
            asyncio.ensure_future(rollout.sample(dataclasses.replace(PROMPT, prompt_id=f"p{n}"), SAMPLING, 0))
            for n in range(3)
        ]
        await asyncio.sleep(1)
        assert [pool.silence_of((f"p{n}", 0)) for n in (0, 1)] == [1.0, 1.0]
        assert pool.silence_of(("p2", 0)) == 0.0
        assert pool.silence_of(("p3", 0)) == float("inf")
        await asyncio.gather(*tasks)

    in_scene(Scene(1, slots=4, seconds=lambda request: 5.0), work)


def test_a_lent_engine_conducts_conversations_and_says_when_it_is_lost() -> None:
    async def work(pool: RolloutPool[Speaker]) -> None:
        environments = FakeEnvironments(lambda name, turn: said(50) if turn < 1 else done())
        lent = pool.lend()
        assert lent is not None
        async with lent as engine:
            rollout = ConversationRollout(engine, environments, 1000)
            await rollout.sample(PROMPT, SAMPLING, 0)
            (borrowed,) = (speaker for speaker in scene.made if speaker.asked)
            task = asyncio.ensure_future(rollout.sample(dataclasses.replace(PROMPT, prompt_id="p1"), SAMPLING, 0))
            await asyncio.sleep(1.5)
            borrowed.kill()
            with pytest.raises(ComponentDied, match=borrowed.name):
                await task
        assert not environments.open_now

    scene = Scene(2)
    in_scene(scene, work)


FAULTS = (None, Unscored, GroupLost)


@given(
    num_workers=st.integers(1, 4),
    slots=st.integers(1, 8),
    group_size=st.integers(1, 5),
    kills=st.lists(st.tuples(st.floats(0, 40), st.integers(0, 7)), max_size=6),
    scales=st.lists(st.tuples(st.floats(0, 40), st.integers(1, 4)), max_size=3),
    cancels=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 5)), max_size=2),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_whatever_fails_a_group_is_whole_or_lost_and_nothing_is_left(
    num_workers: int,
    slots: int,
    group_size: int,
    kills: list[tuple[float, int]],
    scales: list[tuple[float, int]],
    cancels: list[tuple[float, int]],
    seed: int,
) -> None:
    """Random engine deaths, leavers, joiners, faults and slow steps of environments, and callers that give up."""

    def random(name: ConversationId, turn: int, what: str) -> np.random.Generator:
        return np.random.default_rng([seed, int(name.prompt_id[1:]), name.attempt, name.response, turn + 1, len(what)])

    def answer(name: ConversationId, turn: int) -> Observation | GroupLost:
        rng = random(name, turn, "answer")
        fate = rng.random()
        if fate < 0.03:
            return (Unscored if rng.random() < 0.5 else GroupLost)(*name.key, "the environment's fault")
        if fate < 0.35:
            return done(float(rng.random()))
        if fate < 0.45:
            return Observation(None, context_ids=rng.integers(100, 200, 5), began="rewritten", author="user")
        return said(*rng.integers(100, 200, rng.integers(0, 4)).tolist(), author="tool")

    async def work(pool: RolloutPool[Speaker]) -> None:
        loop, begin = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        environments = FakeEnvironments(
            answer, seconds=lambda name, turn: float(random(name, turn, "seconds").exponential(2.0))
        )
        rollout = ConversationRollout(pool, environments, 60)
        sampling = dataclasses.replace(SAMPLING, group_size=group_size, max_turns=5)
        prompts = [dataclasses.replace(PROMPT, prompt_id=f"p{n}") for n in range(6)]
        tasks = [asyncio.ensure_future(rollout.sample(prompt, sampling, 0)) for prompt in prompts]
        for moment, index in kills:
            loop.call_at(begin + moment, lambda index=index: scene.made[index % len(scene.made)].kill())
        for moment, count in scales:
            loop.call_at(begin + moment, lambda count=count: pool.scale(count))
        for moment, index in cancels:
            loop.call_at(begin + moment, tasks[index].cancel)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for prompt, result in zip(prompts, found, strict=True):
            if isinstance(result, PromptGroup):
                assert (result.prompt.prompt_id, len(result.responses)) == (prompt.prompt_id, group_size)
                for k, response in enumerate(result.responses):
                    name = ConversationId(*result.key, k)
                    told = environments.told[name]
                    assert [ids.tolist() for ids in told.contexts()] == _kept(scene, name)
                    turns = np.concatenate([ids for kind, ids in told.events if kind == "turn"])
                    assert response.token_ids.tolist() == turns.tolist()
                    assert len(response.conversation.turns) <= 5
                    assert sum(len(s.token_ids) for s in response.segments) < 5 * 60
            elif isinstance(result, GroupLost):
                assert result.reason
                assert (result.prompt_id, result.attempt) == (prompt.prompt_id, 0)
            else:
                assert isinstance(result, asyncio.CancelledError)
                assert cancels
        assert not environments.open_now
        assert not +environments.working
        await asyncio.sleep(200)  # leavers have left, replacements are up
        assert scene.idle()

    scene = Scene(num_workers, slots, lambda request: float(np.random.default_rng(request.seed()).exponential(1.0)))
    in_scene(scene, work)


def _kept(scene: Scene, name: ConversationId) -> list[list[int]]:
    """Contexts of a conversation's turns, as engines were given them; each is the same at every draw."""
    by_turn: dict[int, list[list[int]]] = {}
    for request in scene.asked():
        if request.conversation == name:
            by_turn.setdefault(request.turn, []).append(request.context_ids.tolist())
    assert all(context == contexts[0] for contexts in by_turn.values() for context in contexts)
    return [by_turn[turn][0] for turn in sorted(by_turn)]
