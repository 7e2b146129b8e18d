"""Effective sample size, tempering and truncated importance weights: by hand, and by their properties."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.objective import effective_sample_size, temper, truncated_importance

RATIOS = st.lists(st.floats(-30, 30), min_size=1, max_size=9)


def row(values: list[float]) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_by_hand() -> None:
    """P = (3/4, 1/4): 1 / (9/16 + 1/16) = 1.6. 1.8 needs P = (2/3, 1/3)."""
    s_t = row([math.log(3), 0.0])
    assert float(effective_sample_size(s_t)) == pytest.approx(1.6)
    assert float(temper(s_t, torch.tensor([1.8]))) == pytest.approx(math.log(2) / math.log(3), rel=1e-6)
    assert float(temper(s_t, torch.tensor([1.6 - 1e-6]))) == 1.0
    assert float(temper(s_t, torch.tensor([2.0], dtype=torch.float64))) < 1e-5


def test_groups_of_unequal_size_are_masked() -> None:
    s_t = torch.tensor([[math.log(3), 0.0, math.nan], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert effective_sample_size(s_t, mask=mask).tolist() == pytest.approx([1.6, 3.0])
    assert temper(s_t, torch.tensor([1.8, 3.0]), mask=mask).tolist() == pytest.approx([0.63093, 1.0], rel=1e-5)


@given(RATIOS, st.floats(0, 1))
def test_the_bound_holds_and_is_met_where_it_binds(values: list[float], share: float) -> None:
    s_t, least = row(values), share * len(values)
    found = temper(s_t, torch.tensor([least], dtype=torch.float64))
    reached = float(effective_sample_size(found[:, None] * s_t))
    assert 0.0 <= float(found) <= 1.0
    assert reached >= least * (1 - 1e-9)
    if float(found) < 1.0:
        more = float(effective_sample_size(min(1.0, float(found) * (1 + 1e-6) + 1e-12) * s_t))
        assert more <= least * (1 + 1e-9)


@given(RATIOS, st.floats(0, 1), st.floats(0, 1))
def test_more_is_asked_less_is_kept(values: list[float], one: float, other: float) -> None:
    less, more = sorted((one, other))
    s_t, size = row(values), len(values)
    kept = [float(temper(s_t, torch.tensor([share * size], dtype=torch.float64))) for share in (less, more)]
    assert kept[0] >= kept[1]


@given(RATIOS, st.floats(0, 1))
def test_tempering_twice_is_tempering_once(values: list[float], share: float) -> None:
    s_t, least = row(values), torch.tensor([share * len(values)], dtype=torch.float64)
    assert float(temper(temper(s_t, least)[:, None] * s_t, least)) == 1.0


@given(RATIOS)
def test_the_effective_sample_size_falls_with_lambda_from_all_to_what_it_is(values: list[float]) -> None:
    sizes = [float(effective_sample_size(row(values) * part)) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert sizes[0] == pytest.approx(len(values))
    assert all(left >= right - 1e-9 for left, right in itertools.pairwise(sizes))
    assert sizes[-1] >= 1.0 - 1e-9


@pytest.mark.parametrize("value", [-30.0, 0.0, 30.0])
def test_one_response_is_never_tempered(value: float) -> None:
    assert float(temper(row([value]), torch.tensor([1.0], dtype=torch.float64))) == 1.0


def test_importance_weights_are_cut_constants() -> None:
    delta = torch.tensor([[0.0, math.log(1.5), 200.0, -1.0]], requires_grad=True)
    weights = truncated_importance(delta, 2.0)
    assert weights.tolist()[0] == pytest.approx([1.0, 1.5, 2.0, math.exp(-1)])
    assert not weights.requires_grad


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"log_ratio has shape \(2,\)", lambda: effective_sample_size(torch.zeros(2))),
        (r"least is \[3.0\] for groups of \[2\]", lambda: temper(torch.zeros(1, 2), torch.tensor([3.0]))),
        (r"expected \[P\], at most K each", lambda: temper(torch.zeros(1, 2), torch.tensor([1.0, 1.0]))),
        ("cap is 0.5; expected a number of 1 or more", lambda: truncated_importance(torch.zeros(1, 2), 0.5)),
    ],
)
def test_what_cannot_be_is_refused(message: str, call) -> None:
    with pytest.raises(ValueError, match=message):
        call()
