"""The books of which engines can be reached, under any order of joins, losses and departures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.transports.peer_groups import MOST_GROUPS, PeerGroups

SOME = st.sets(st.integers(0, 7), max_size=8)
MOVES = st.lists(st.tuples(st.sampled_from(["publish", "admit", "lose", "break"]), SOME), max_size=25)


@given(st.booleans(), MOVES)
def test_a_delivery_reaches_each_of_its_members_by_one_group_and_nobody_else(
    collective: bool, moves: list[tuple[str, set[int]]]
) -> None:
    groups = PeerGroups[int](collective=collective)
    real: dict[int, set[int]] = {}
    """groups as senders and engines have them: an engine is in the last one that it joined"""
    for move, some in moves:
        members = sorted(some)
        if move == "lose":
            groups.forget(some)
            continue
        if move == "break":
            groups.clear()
            continue
        if move == "publish":
            groups.only_of(members)
        groups.split(members)
        fresh = groups.outside(members)
        if fresh:
            number = groups.new_number()
            assert number not in real
            real = {n: g for n, g in real.items() if n in groups.numbers}  # as senders do: the rest is ended
            real[number] = set(fresh)
            groups.add(number, fresh)
        if collective:
            assert sorted(member for number in groups.within(members) for member in real[number]) == members
        assert not groups.outside(members)
        if move == "publish" and collective:
            assert len(groups.numbers) <= MOST_GROUPS + 1


def test_a_loss_breaks_a_collective_and_leaves_the_others() -> None:
    for collective, left in ((True, [1]), (False, [0, 1])):
        groups = PeerGroups[str](collective=collective)
        groups.add(groups.new_number(), ["a", "b"])
        groups.add(groups.new_number(), ["c"])
        groups.forget(["a"])
        assert groups.numbers == left
        assert groups.outside(["a", "b", "c"]) == (["a", "b"] if collective else ["a"])
