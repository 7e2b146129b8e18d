"""Where DeepSpeed keeps a rank's fp32 weights and moments, read and written where they lie.

DeepSpeed's functions for it copy every run to the device first, which offloaded state would cross the bus for, and with
NVMe swap a whole sub-group in for each parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from actors.learner.shard_files import MOMENTS, STEP, WEIGHTS


class Zero3Optimizer(Protocol):
    """The part of DeepSpeed's optimizer of stage 3 that is used here. A sub-group has parameters that are updated at
    once.
    """

    optimizer: torch.optim.Optimizer
    fp16_groups: list[list[nn.Parameter]]
    fp32_partitioned_groups_flat: list[Any]
    grad_position: dict[object, tuple[int, int, int]]
    """parameter -> sub-group, place in its flat tensor, elements"""
    swap_optimizer: bool
    """the state is on NVMe"""

    def get_param_id(self, param: nn.Parameter) -> object: ...  # noqa: D102
    def _swappable_optimizer_subgroup(self, sub_group_id: int) -> bool: ...
    def _optimizer_states_and_gradient_swap_in(self, sub_group_id: int) -> None: ...
    def _optimizer_states_and_gradient_swap_out(self, sub_group_id: int) -> None: ...
    def _release_swap_buffers(self, sub_group_id: int) -> None: ...
    def _reassign_or_swap_out_partitioned_parameters(self, sub_group_id: int) -> None: ...
    def checkpoint_event_prologue(self) -> None: ...  # noqa: D102
    def checkpoint_event_epilogue(self) -> None: ...  # noqa: D102


def states(zero: Zero3Optimizer) -> Iterator[tuple[nn.Parameter, dict[str, Tensor]]]:
    """Yield each parameter with this rank's run of its fp32 weights and moments, padding included. What is yielded is
    good until the next is asked for, and is not to be changed.
    """
    for number, _ in enumerate(zero.fp16_groups):
        swapped = zero._swappable_optimizer_subgroup(number)
        if swapped:
            zero._optimizer_states_and_gradient_swap_in(number)
        yield from _runs(zero, number)
        if swapped:
            zero._release_swap_buffers(number)


def step_of(zero: Zero3Optimizer) -> int:
    """Count the updates that AdamW has made."""
    return max((int(state[STEP]) for state in zero.optimizer.state.values() if STEP in state), default=0)


def fill(zero: Zero3Optimizer, step: int, read: Callable[[nn.Parameter, str, Tensor], None]) -> None:
    """Have ``read`` write each parameter's runs, by the name of their part, and make the weights of the forward of
    them. ``step``: number of updates that AdamW has made.
    """
    zero.checkpoint_event_prologue()
    for number, _ in enumerate(zero.fp16_groups):
        swapped = zero._swappable_optimizer_subgroup(number)
        if swapped:
            zero._optimizer_states_and_gradient_swap_in(number)
        _make_state(zero, number, step)
        for parameter, runs in _runs(zero, number):
            for part, run in runs.items():
                read(parameter, part, run)
        zero._reassign_or_swap_out_partitioned_parameters(number)
        if swapped:
            zero._optimizer_states_and_gradient_swap_out(number)


def finish(zero: Zero3Optimizer) -> None:
    """Gather the parameters that stay whole after ``fill``. A collective: all ranks call it at once."""
    zero.checkpoint_event_epilogue()


def gradients(zero: Zero3Optimizer) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield each parameter with this rank's run of its gradient, where it is offloaded to the host's memory."""
    for number, group in enumerate(zero.fp16_groups):
        flat = zero.fp32_partitioned_groups_flat[number].grad
        for parameter in group:
            _, place, size = zero.grad_position[zero.get_param_id(parameter)]
            yield parameter, flat.narrow(0, place, size)


def _make_state(zero: Zero3Optimizer, number: int, step: int) -> None:
    """Make AdamW's state of a sub-group as it would itself at its first update, but for the number of updates."""
    flat = zero.fp32_partitioned_groups_flat[number]
    state = zero.optimizer.state[flat]
    state[STEP] = torch.full((), float(step), dtype=torch.float32, device=flat.device)
    for moment in MOMENTS:
        if moment not in state:
            state[moment] = torch.zeros_like(flat.detach())


def _runs(zero: Zero3Optimizer, number: int) -> Iterator[tuple[nn.Parameter, dict[str, Tensor]]]:
    """Yield the runs of a sub-group. Before the first update there are no moments: they are zero."""
    flat = zero.fp32_partitioned_groups_flat[number].detach()
    state = zero.optimizer.state.get(zero.fp32_partitioned_groups_flat[number], {})
    for parameter in zero.fp16_groups[number]:
        _, place, size = zero.grad_position[zero.get_param_id(parameter)]
        runs = {WEIGHTS: flat.narrow(0, place, size)}
        for moment in MOMENTS:
            runs[moment] = state[moment].narrow(0, place, size) if moment in state else flat.new_zeros(size)
        yield parameter, runs
