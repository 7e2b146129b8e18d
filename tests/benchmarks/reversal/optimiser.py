"""The optimiser of TPO's token reversal: optax.contrib.muon, whose two halves differ from torch's Muon and AdamW.

Muon (Jordan et al., 2024) for what has two dimensions: Nesterov's momentum, corrected for its start, orthogonalised in
fp32 (torch: in bf16, not corrected). Adam with Nesterov's momentum (Dozat, 2016, without a schedule) for the rest. An
update has one size whatever the gradient's, and goes on for some steps when there is none: with a rare reward that is
most of what happens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95
BETAS = (0.9, 0.999)
EPS = 1e-8


class Muon:
    """Of matrices [out, in] of one shape or its transpose, stacked; and of everything else by Adam."""

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        self.learning_rate, self.count = learning_rate, 0
        stacks: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        self._rest: list[nn.Parameter] = []
        for parameter in parameters:
            if parameter.ndim == 2:
                stacks[min(parameter.shape), max(parameter.shape)].append(parameter)
            else:
                self._rest.append(parameter)
        self._stacks = [(stack, torch.zeros(len(stack), *shape)) for shape, stack in stacks.items()]
        self._first = [torch.zeros_like(parameter) for parameter in self._rest]
        self._second = [torch.zeros_like(parameter) for parameter in self._rest]

    @torch.no_grad()
    def step(self, gradients: dict[nn.Parameter, Tensor]) -> None:
        """One update of all parameters."""
        self.count += 1
        for stack, moment in self._stacks:
            gradient = torch.stack([_wide(gradients[parameter]) for parameter in stack])
            moment.lerp_(gradient, 1 - MOMENTUM)
            direction = orthogonalise(self._nesterov(moment, gradient, MOMENTUM))
            for parameter, update in zip(stack, direction, strict=True):
                out, into = parameter.shape
                rate = self.learning_rate * max(1.0, out / into) ** 0.5
                parameter.sub_(update if out <= into else update.T, alpha=rate)
        rest = [gradients[parameter] for parameter in self._rest]
        torch._foreach_lerp_(self._first, rest, 1 - BETAS[0])
        torch._foreach_mul_(self._second, BETAS[1])
        torch._foreach_addcmul_(self._second, rest, rest, 1 - BETAS[1])
        for parameter, first, second, gradient in zip(self._rest, self._first, self._second, rest, strict=True):
            spread = (second / (1 - BETAS[1] ** self.count)).sqrt_().add_(EPS)
            parameter.addcdiv_(self._nesterov(first, gradient, BETAS[0]), spread, value=-self.learning_rate)

    def _nesterov(self, moment: Tensor, gradient: Tensor, beta: float) -> Tensor:
        ahead, now = 1 - beta ** (self.count + 1), 1 - beta**self.count
        return moment * (beta / ahead) + gradient * ((1 - beta) / now)


def orthogonalise(matrices: Tensor) -> Tensor:
    """[N, a, b] with a <= b -> about U V' of each one's U S V': five steps of Newton and Schulz. Zeros stay zeros."""
    a, b, c = NEWTON_SCHULZ
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + EPS)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
