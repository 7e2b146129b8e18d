"""Who gets the next group, against the rule stated plainly: least loaded, with room, first come first served."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.errors import ComponentDied
from lpo_ray.records import Process, WeightsVersion
from lpo_ray.rollout.load_balancer import NEAR, LoadBalancer
from lpo_ray.rollout.member import Member
from lpo_ray.tools.simulate.virtual_time import run

SLOTS = 6
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 9)),
        st.tuples(st.just("end"), st.integers(0, 30)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("join"), st.just(0)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("lend"), st.integers(0, 30)),
        st.tuples(st.just("return"), st.integers(0, 30)),
    ),
    max_size=60,
)


def make_member(index: int) -> Member:
    return Member(index, f"worker {index}", None, Process(index, "node", "host", ()), None, WeightsVersion(1, "one"))


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


class Stated:
    """The rule over lists, without a heap."""

    def __init__(self) -> None:
        self.loads: dict[int, int] = {}
        self.away: set[int] = set()
        self.waiting: list[tuple[int, int]] = []
        """(group, its responses)"""
        self.given: dict[int, tuple[int, int]] = {}
        """group -> (member, its responses)"""

    def look(self) -> None:
        while self.waiting:
            group, size = self.waiting[0]
            serving = [(load, index) for index, load in self.loads.items() if index not in self.away]
            if not serving:
                return
            load, index = min(serving)
            if load and load + size > SLOTS:
                return
            self.waiting.pop(0)
            self.loads[index] += size
            self.given[group] = (index, size)


@given(MOVES)
@settings(deadline=None)
def test_groups_go_where_the_stated_rule_says_whoever_comes_and_goes(moves: list[tuple[str, int]]) -> None:
    async def scene() -> None:
        balance, stated = LoadBalancer(SLOTS), Stated()
        members: dict[int, Member] = {}
        tasks: dict[int, asyncio.Task[Member]] = {}
        for number, (move, value) in enumerate(moves):
            at_work, known = sorted(stated.given), sorted(members)
            if move == "ask":
                tasks[number] = asyncio.ensure_future(balance.take(value, lambda: 1e9))
                stated.waiting.append((number, value))
            elif move == "end" and at_work:
                group = at_work[value % len(at_work)]
                index, size = stated.given.pop(group)
                stated.loads[index] -= size
                balance.give_back(members[index], size)
                del tasks[group]
            elif move == "cancel" and stated.waiting:
                group, _ = stated.waiting.pop(value % len(stated.waiting))
                tasks.pop(group).cancel()
            elif move == "join":
                members[number] = make_member(number)
                stated.loads[number] = 0
                balance.offer([members[number]])
            elif move == "leave" and known:
                index = known[value % len(known)]
                members[index].up = False
                stated.away.add(index)
            elif move == "lend" and known:
                index = known[value % len(known)]
                members[index].lent = True
                stated.away.add(index)
            elif move == "return" and known:
                index = known[value % len(known)]
                members[index].lent = False
                if members[index].up:
                    stated.away.discard(index)
                balance.offer([members[index]])
            await settle()
            stated.look()
            assert {group: task.result().index for group, task in tasks.items() if task.done()} == {
                group: index for group, (index, _) in stated.given.items()
            }
            assert {index: member.responses for index, member in members.items()} == stated.loads
            assert balance.num_waiting == len(stated.waiting)
        for task in tasks.values():
            task.cancel()

    run(scene())


def test_a_group_that_is_cancelled_as_it_gets_its_member_gives_the_place_back() -> None:
    async def scene() -> None:
        balance, member = LoadBalancer(SLOTS), make_member(0)
        task = asyncio.ensure_future(balance.take(4, lambda: 1e9))
        await settle()
        balance.offer([member])
        assert member.responses == 4
        task.cancel()
        await settle()
        assert task.cancelled()
        assert member.responses == 0

    run(scene())


def test_a_large_group_that_is_cancelled_lets_the_smaller_one_behind_it_go() -> None:
    async def scene() -> None:
        balance, member = LoadBalancer(SLOTS), make_member(0)
        balance.offer([member])
        await balance.take(4, lambda: 1e9)
        large, small = (asyncio.ensure_future(balance.take(size, lambda: 1e9)) for size in (5, 2))
        await settle()
        assert balance.num_waiting == 2
        large.cancel()
        await settle()
        assert small.result() is member
        assert balance.num_waiting == 0

    run(scene())


def test_patience_is_asked_again_and_ends_the_wait() -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        asked: list[float] = []

        def patience() -> float:
            asked.append(loop.time())
            return 10.0 if loop.time() < 15 else 0.0

        with pytest.raises(TimeoutError):
            await LoadBalancer(SLOTS).take(1, patience)
        assert loop.time() == 20.0
        assert asked == [0.0, 10.0, 10.0, 20.0]

    run(scene())


def test_a_failure_reaches_all_who_wait() -> None:
    async def scene() -> None:
        balance = LoadBalancer(SLOTS)
        tasks = [asyncio.ensure_future(balance.take(size, lambda: 1e9)) for size in (1, 2)]
        await settle()
        balance.fail(ComponentDied("rollout worker 0", "gone"))
        for task in tasks:
            with pytest.raises(ComponentDied, match="gone"):
                await task
        assert balance.num_waiting == 0

    run(scene())


def test_the_heap_stays_small_however_many_groups_pass() -> None:
    async def scene() -> None:
        balance, members = LoadBalancer(SLOTS), [make_member(index) for index in range(3)]
        balance.offer(members)
        for _ in range(2000):
            balance.give_back(await balance.take(2, lambda: 1e9), 2)
        assert len(balance._by_load) <= 8 * (len(members) + 1) + 1
        assert [member.responses for member in members] == [0, 0, 0]

    run(scene())


def test_room_goes_to_who_prefers_it_first_and_to_the_oldest_when_nobody_does() -> None:
    async def scene() -> None:
        balance, (one, other) = LoadBalancer(1), (make_member(0), make_member(1))
        balance.offer([one, other])
        for _ in range(2):
            await balance.take(1, lambda: 1e9)
        wanted = (other, one, None, other, one)
        tasks = [asyncio.ensure_future(balance.take(1, lambda: 1e9, preferred)) for preferred in wanted]
        got: list[int] = []
        for member in (one, one, one, one, other):
            await settle()
            balance.give_back(member, 1)
            await settle()
            got += [n for n, task in enumerate(tasks) if task.done() and n not in got]
        assert got == [1, 4, 0, 2, 3]  # its own, its own, then the oldest, whatever they prefer; the last has its own
        assert [task.result().index for task in tasks] == [0, 0, 0, 1, 0]

    run(scene())


@pytest.mark.parametrize("gone", ["up", "lent", "slow"])
def test_nobody_waits_for_a_member_that_is_gone_or_slow_while_another_has_room(gone: str) -> None:
    async def scene() -> None:
        balance, (slow, quick) = LoadBalancer(1), (make_member(0), make_member(1))
        balance.offer([slow, quick])
        for _ in range(2):
            await balance.take(1, lambda: 1e9)
        if gone == "up":
            slow.up = False
        slow.lent = gone == "lent"
        first = asyncio.ensure_future(balance.take(1, lambda: 1e9, slow))
        await settle()
        others = [asyncio.ensure_future(balance.take(1, lambda: 1e9, quick)) for _ in range(3 * NEAR)]
        freed = 0
        while not first.done():
            await settle()
            balance.give_back(quick, 1)
            freed += 1
            await settle()
            assert quick.responses == 1, "room is never left while somebody waits"
        assert first.result() is quick
        assert freed == NEAR + 1
        assert [task.done() for task in others] == [True] * NEAR + [False] * 2 * NEAR
        for task in others:
            task.cancel()

    run(scene())


@given(st.lists(st.tuples(st.sampled_from(["ask", "end"]), st.integers(0, 3), st.integers(1, 3)), max_size=80))
@settings(deadline=None)
def test_with_preferences_no_room_is_left_and_everyone_has_a_bound(moves: list[tuple[str, int, int]]) -> None:
    """Whoever is the oldest sees at most NEAR go before it, and nothing waits that a member has room for."""

    async def scene() -> None:
        balance, members = LoadBalancer(SLOTS), [make_member(index) for index in range(3)]
        balance.offer(members)
        waiting: list[tuple[int, asyncio.Task[Member]]] = []
        at_work: list[tuple[int, Member]] = []
        passed = 0
        for move, number, size in moves:
            if move == "ask":
                preferred = members[number] if number < 3 else None
                waiting.append((size, asyncio.ensure_future(balance.take(size, lambda: 1e9, preferred))))
            elif at_work:
                size, member = at_work.pop(number % len(at_work))
                balance.give_back(member, size)
            await settle()
            gone = [n for n, (_, task) in enumerate(waiting) if task.done()]
            passed = 0 if 0 in gone else passed + len(gone)
            assert passed <= NEAR
            at_work += [(waiting[n][0], waiting[n][1].result()) for n in gone]
            waiting = [one for n, one in enumerate(waiting) if n not in gone]
            if waiting:
                assert all(member.responses + waiting[0][0] > SLOTS for member in members)
            assert sum(member.responses for member in members) == sum(size for size, _ in at_work)
        for _, task in waiting:
            task.cancel()

    run(scene())
