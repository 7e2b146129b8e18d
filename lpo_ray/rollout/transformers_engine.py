"""Rollout engine on transformers' ``generate``, in this process and open to a breakpoint."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from typing_extensions import override

from lpo_ray.common.seeds import derive_seed
from lpo_ray.interfaces import TurnEngine
from lpo_ray.policy.generation import without_sampling
from lpo_ray.policy.weights import published
from lpo_ray.records import FloatArray, IntArray, Prompt, PromptGroup, Sampling, Turn, TurnRequest


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    context_ids: IntArray
    sampling: Sampling
    max_tokens: int
    size: int
    """responses behind the context"""
    seed: int
    """of the generator that they are all drawn from"""
    answer: asyncio.Future[list[Turn]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def kind(self) -> tuple[int, int, Sampling]:
        """Properties of requests that must be equal for them to be sampled together."""
        return len(self.context_ids), self.max_tokens, self.sampling


class TransformersEngine(TurnEngine):
    """Engine with its own copy of the policy, whose weights ``load`` replaces.

    Prompts and contexts of equal length that wait are sampled together, in a batch of at most ``max_num_seqs``
    responses (one group at least). Each group, and each turn, draws from a generator of its own, seeded by its name in
    the run, so company changes it by rounding errors only.
    """

    def __init__(self, model: PreTrainedModel, end_tokens: Sequence[int], pad_token_id: int, max_num_seqs: int) -> None:
        """``model`` is owned by the engine and must not be trained. Any of ``end_tokens`` ends a response."""
        self._model = model.eval()
        without_sampling(model)
        self._ends, self._pad, self._max_num_seqs = list(end_tokens), pad_token_id, max_num_seqs
        self._waiting: list[_Asked] = []
        self.step = 0

    @override
    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        seed = derive_seed(sampling.seed, prompt.prompt_id, attempt)
        turns = await self._answer(_Asked(prompt.token_ids, sampling, sampling.max_tokens, sampling.group_size, seed))
        return PromptGroup(prompt, attempt, tuple(turn.as_response() for turn in turns))

    @override
    async def turn(self, request: TurnRequest) -> Turn:
        asked = _Asked(request.context_ids, request.sampling, request.max_tokens, 1, request.seed())
        return (await self._answer(asked))[0]

    async def _answer(self, asked: _Asked) -> list[Turn]:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._answer_a_batch)
        self._waiting.append(asked)
        return await asked.answer

    def load(self, weights: dict[str, torch.Tensor], step: int) -> None:
        """Serve ``weights`` from now on, as version ``step``."""
        own = published(self._model)
        if own.keys() != weights.keys():
            missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
            raise ValueError(f"weights do not fit the engine's model: missing {missing}, unexpected {unexpected}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])
        self.step = step

    def logprobs(self, sequence: IntArray) -> FloatArray:
        """Log-probs of tokens 1..T-1 of ``sequence`` at temperature 1, [T-1]."""
        with torch.no_grad():
            token_ids = torch.from_numpy(sequence)[None]
            scores = self._model(token_ids).logits[0, :-1].float().log_softmax(-1)
        return scores.gather(1, token_ids[0, 1:, None])[:, 0].numpy()

    def _answer_a_batch(self) -> None:
        batch = _alike(self._waiting, self._max_num_seqs)
        self._waiting = [asked for asked in self._waiting if asked not in batch]
        if self._waiting:  # after whatever else the loop has to do
            asyncio.get_running_loop().call_soon(self._answer_a_batch)
        try:
            answers = self._sample(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the callers
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_exception(error)
            return
        for asked, turns in zip(batch, answers, strict=True):
            if not asked.answer.done():
                asked.answer.set_result(turns)

    def _sample(self, batch: Sequence[_Asked]) -> list[list[Turn]]:
        """Sample behind contexts of equal length and equal sampling."""
        sampling = batch[0].sampling
        rows = [asked.context_ids for asked in batch for _ in range(asked.size)]
        token_ids = torch.from_numpy(np.stack(rows))
        draw = _Draw([(asked.seed, asked.size) for asked in batch], sampling)
        ends = [*self._ends, *sampling.stop_token_ids]
        config = GenerationConfig(
            do_sample=False,  # _Draw draws
            max_new_tokens=batch[0].max_tokens,
            eos_token_id=ends,
            pad_token_id=self._pad,
        )
        with torch.no_grad():
            output = self._model.generate(  # pyright: ignore[reportCallIssue] - from GenerationMixin
                token_ids,
                attention_mask=torch.ones_like(token_ids),
                generation_config=config,
                logits_processor=LogitsProcessorList([*_warpers(sampling), draw]),
            )
        sampled = output[:, token_ids.shape[1] :]
        logprobs = torch.stack(draw.logprobs, dim=1)
        turns = (self._turn(*row, torch.tensor(ends)) for row in zip(sampled, logprobs, strict=True))
        return [list(itertools.islice(turns, asked.size)) for asked in batch]

    def _turn(self, token_ids: torch.Tensor, logprobs: torch.Tensor, ends: torch.Tensor) -> Turn:
        stops = torch.isin(token_ids, ends).nonzero()
        length = int(stops[0]) + 1 if len(stops) else len(token_ids)
        return Turn(
            token_ids[:length].numpy().astype(np.int64),
            logprobs[:length].numpy().astype(np.float32),
            np.full(length, self.step, dtype=np.int64),
            "stop" if len(stops) else "length",
        )


class _Draw(LogitsProcessor):
    """Processor that leaves one token in each row: one drawn from the scores, or at temperature 0 the likeliest.

    The likeliest after adding Gumbel noise is a draw from softmax(scores), Maddison et al. 2014 (arXiv:1411.0030).
    """

    def __init__(self, seeds: Sequence[tuple[int, int]], sampling: Sampling) -> None:
        """``seeds``: seed of a generator, and how many rows in a row it draws."""
        self._generators = [(torch.Generator().manual_seed(seed), rows) for seed, rows in seeds]
        self._sampling = sampling
        self.logprobs: list[torch.Tensor] = []
        """log-prob of the token drawn in each row, [rows] for each position"""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        logprobs = scores.float().log_softmax(-1)
        drawn = logprobs.argmax(-1, keepdim=True)
        if self._sampling.temperature:
            noise = torch.cat(
                [torch.empty(rows, scores.shape[1]).exponential_(generator=each) for each, rows in self._generators]
            )
            drawn = (logprobs - noise.log()).argmax(-1, keepdim=True)
        self.logprobs.append(logprobs.gather(1, drawn)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)  # pyright: ignore[reportReturnType]


def _warpers(sampling: Sampling) -> Iterator[LogitsProcessor]:
    """Make the processors of the scores, in vLLM's order."""
    if sampling.temperature == 0:
        return
    if sampling.temperature != 1:
        yield TemperatureLogitsWarper(sampling.temperature)
    if sampling.min_p:
        yield MinPLogitsWarper(sampling.min_p)
    if sampling.top_k:
        yield TopKLogitsWarper(sampling.top_k)
    if sampling.top_p < 1:
        yield TopPLogitsWarper(sampling.top_p)


def _alike(waiting: Sequence[_Asked], max_num_seqs: int) -> list[_Asked]:
    """Take the first request, and those of its kind that fit into a batch with it."""
    first, *others = waiting
    batch, rows = [first], first.size
    for asked in others:
        if asked.kind == first.kind and rows + asked.size <= max_num_seqs:
            batch.append(asked)
            rows += asked.size
    return batch
