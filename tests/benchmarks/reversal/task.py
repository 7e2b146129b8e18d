"""Token reversal with a terminal reward: prompts, sampled responses, rewards, and each distinct thing computed once.

Legend: P prompts of a batch, K responses each, N = P K, H symbols of a prompt and of a response, V vocabulary; of
those, D distinct prompts and U distinct responses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.benchmarks.reversal.model import Policy, response_logprobs


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step is trained on. With two symbols and short prompts most of it is there several times."""

    prompts: Tensor
    """[D, H] distinct"""
    owner: Tensor
    """[U] the prompt of each distinct response"""
    responses: Tensor
    """[U, H] distinct"""
    row: Tensor
    """[P, K] the distinct response of each one"""
    behaviour: Tensor
    """[P, K, H] log-probs under the policy that sampled them"""
    rewards: Tensor
    """[P, K] 0 or 1"""

    @property
    def varied(self) -> Tensor:
        """[P] groups whose K responses are not all the same one: of the others P and w* stay uniform."""
        return (self.row != self.row[:, :1]).any(-1)

    def logprobs(self, policy: Policy) -> Tensor:
        """[N, H] under ``policy``."""
        return response_logprobs(policy, self.prompts, self.owner, self.responses)[self.row.flatten()]

    def only(self, groups: Tensor) -> Batch:
        """The groups of a mask [P]."""
        kept, row = torch.unique(self.row[groups], return_inverse=True)
        prompts, owner = torch.unique(self.owner[kept], return_inverse=True)
        return Batch(
            self.prompts[prompts], owner, self.responses[kept], row, self.behaviour[groups], self.rewards[groups]
        )


def reward(prompts: Tensor, responses: Tensor) -> Tensor:
    """[P, H] and [P, K, H] -> [P, K]: 1 when all of a response is its prompt backwards, 0 otherwise."""
    if prompts.ndim != 2 or responses.ndim != 3 or responses.shape[::2] != prompts.shape:
        raise ValueError(f"prompts {tuple(prompts.shape)}, responses {tuple(responses.shape)}; expected PH and PKH")
    return (responses == prompts.flip(-1)[:, None]).all(-1).float()


@torch.no_grad()
def sample(policy: Policy, prompts: Tensor, group_size: int, generator: torch.Generator) -> Batch:
    """K responses of as many symbols as each prompt [P, H], at temperature 1. Each distinct beginning runs once."""
    vocabulary, length = policy.shape.vocabulary, prompts.shape[1]
    digits = vocabulary ** torch.arange(length - 1, -1, -1)
    codes, own = torch.unique(prompts @ digits, return_inverse=True)
    distinct = codes[:, None] // digits % vocabulary
    logits, cache = policy(distinct)
    prompt = at = own.repeat_interleave(group_size)
    tokens, logprobs = [], []
    for place in range(length):
        table = logits[:, -1].log_softmax(-1)
        token = torch.multinomial(table[at].exp(), 1, generator=generator)[:, 0]
        tokens.append(token)
        logprobs.append(table[at, token])
        if place < length - 1:
            beginnings, at = torch.unique(at * vocabulary + token, return_inverse=True)
            parent, last = beginnings // vocabulary, beginnings % vocabulary
            logits, cache = policy(last[:, None], [(key[parent], value[parent]) for key, value in cache])
    drawn = torch.stack(tokens, -1)
    codes, row = torch.unique(prompt * vocabulary**length + drawn @ digits, return_inverse=True)
    shape = (len(prompts), group_size)
    return Batch(
        prompts=distinct,
        owner=codes // vocabulary**length,
        responses=codes[:, None] // digits % vocabulary,
        row=row.view(shape),
        behaviour=torch.stack(logprobs, -1).view(*shape, length),
        rewards=reward(prompts, drawn.view(*shape, length)),
    )
