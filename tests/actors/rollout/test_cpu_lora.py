"""Rows of a batch that have no adapter, beside some that have one."""

from __future__ import annotations

import torch


def test_a_row_without_an_adapter_gets_none() -> None:
    from actors.rollout.cpu_lora import kernels, repair

    repair()
    weights = torch.stack([torch.full((1, 3, 4), 1.0), torch.full((1, 3, 4), 100.0)])
    out, ones = torch.zeros(2, 3), torch.tensor([1, 1])
    kernels.sgmv_shrink(torch.ones(2, 4), weights, out, torch.tensor([0, 1]), ones, torch.tensor([0, -1]), 2, 1, 2, 1.0)
    assert out.tolist() == [[4.0] * 3, [0.0] * 3]
