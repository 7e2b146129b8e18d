"""Hypothesis strategies for groups on the simplex."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

Group = dict[str, torch.Tensor]
FINITE = {"allow_nan": False, "allow_infinity": False, "allow_subnormal": False}


@st.composite
def groups(draw: st.DrawFn, min_k: int = 2, max_k: int = 9, spread: float = 3.0) -> Group:
    """rewards, tau, anchor s_t and log-ratio s_theta of one group, [1, K] float64."""
    size = draw(st.integers(min_k, max_k))

    def row(low: float, high: float) -> torch.Tensor:
        values = draw(st.lists(st.floats(low, high, **FINITE), min_size=size, max_size=size))
        return torch.tensor([values], dtype=torch.float64)

    return {
        "rewards": row(-2.0, 2.0),
        "tau": torch.tensor([draw(st.floats(0.2, 5.0, **FINITE))], dtype=torch.float64),
        "anchor": row(-spread, spread),
        "log_ratio": row(-spread, spread),
    }
