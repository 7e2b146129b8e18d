"""Restart budgets: a count in a window, and a pause that grows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.common.restart_budget import RestartBudget, RestartRule


def test_the_first_restart_comes_at_once_and_the_pauses_double() -> None:
    budget = RestartBudget(RestartRule(4, 100.0, 0.5), clock=lambda: 0.0)
    assert [budget.spend() for _ in range(5)] == [0.0, 0.5, 1.0, 2.0, None]
    assert (budget.spent, str(budget)) == (4, "4 of 4 restarts in 100 s")


def test_what_is_older_than_the_window_is_forgiven() -> None:
    now = [0.0]
    budget = RestartBudget(RestartRule(1, 10.0, 1.0), clock=lambda: now[0])
    assert budget.spend() == 0.0
    now[0] = 9.9
    assert budget.spend() is None
    now[0] = 10.0
    assert budget.spend() == 0.0
    assert budget.spent == 2


@given(st.lists(st.floats(0, 50), max_size=40), st.integers(0, 5), st.floats(0.1, 40))
def test_no_window_ever_holds_more_than_the_count(gaps: list[float], count: int, window: float) -> None:
    now, granted = 0.0, []
    budget = RestartBudget(RestartRule(count, window, 1.0), clock=lambda: now)
    for gap in gaps:
        now += gap
        if budget.spend() is not None:
            granted.append(now)
    assert all(sum(at <= t < at + window for t in granted) <= count for at in granted)
