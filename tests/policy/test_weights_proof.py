"""The probe, and two answers to it side by side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.policy.weights_proof import (
    BLOCK,
    CACHED,
    SCORED,
    Agreement,
    as_answered,
    check_arrival,
    compare,
    probe_sequences,
)

ROWS = st.lists(st.lists(st.integers(0, 3), max_size=40), min_size=1, max_size=9).filter(any)


@given(ROWS, st.integers(3, 400))
@settings(max_examples=200, deadline=None)
def test_the_probe_is_text_of_the_prompts_that_fits_and_shares_no_cached_block(
    rows: list[list[int]], context: int
) -> None:
    scored, cached = probe_sequences([np.array(row, dtype=np.int64) for row in rows], context)
    assert (len(scored), len(cached)) == (min(SCORED, context - 1), min(CACHED, context - 1))
    text = [token for row in rows for token in row] * SCORED
    assert scored.tolist() == text[: len(scored)]
    assert cached.tolist()[1:] == text[2 : 1 + len(cached)]  # its first token makes it another, if nothing else does
    assert not np.array_equal(scored[:BLOCK], cached[:BLOCK])


def test_a_probe_needs_a_token() -> None:
    with pytest.raises(ValueError, match="a probe of no tokens"):
        probe_sequences([np.array([], dtype=np.int64)], 64)


def test_typical_is_of_nine_tenths_and_largest_of_all() -> None:
    left = [np.full(15, -2.0), np.full(5, -2.0)]
    right = [left[0] + 0.03, left[1].copy()]
    right[1][:2] = [5.0, 0.0]  # two of twenty, as a token that went to another expert
    found = compare(left, right)
    assert found == Agreement(pytest.approx(np.sqrt(15 * 0.03**2 / 18)), 7.0, 2.0)
    right[1][2] = 5.0  # a third one counts
    assert compare(left, right).typical > 0.4


def test_what_is_no_number_or_missing_is_infinite() -> None:
    rows = [np.zeros(9, np.float32), np.zeros(1, np.float32)]
    assert compare(rows, [rows[0], np.array([np.nan], np.float32)]).largest == float("inf")
    assert compare(rows, [np.full(9, np.nan, np.float32), rows[1]]).typical == float("inf")
    assert compare(rows, [rows[0][:-1], rows[1]]) == Agreement(float("inf"), float("inf"))
    assert compare(rows, rows[:1]).typical == float("inf")


def test_an_engine_answers_the_last_token_of_the_last_sequence_only() -> None:
    rows = [np.arange(3.0), np.arange(5.0)]
    assert [row.tolist() for row in as_answered(rows)] == [[0, 1, 2], [4]]


def test_what_did_not_arrive_as_it_was_sent_is_named() -> None:
    sent = {"a": "1" * 32, "b": "2" * 32}
    assert check_arrival(sent, [sent, sent], 0) == ""
    assert check_arrival(sent, [sent, {"a": "1" * 32}], 0) == "b did not arrive (1 of 2 tensors missing)"
    assert check_arrival(sent, [sent, dict(sent, a="3" * 32)], 0) == (
        "the bytes of a that arrived at process 1 have digest 333333333333, sent were 111111111111 (1 tensors differ)"
    )
    assert "32 tokens of the probe came from a prefix cache" in check_arrival(sent, [sent], 32)
