"""Rollout engine on transformers' ``generate``, in this process and open to a breakpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
from lpo_ray.interfaces import RolloutEngine
from lpo_ray.records import FloatArray, IntArray, Prompt, PromptGroup, Response, Sampling


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    prompt: Prompt
    sampling: Sampling
    attempt: int
    answer: asyncio.Future[PromptGroup]


class TransformersEngine(RolloutEngine):
    """Rollout engine with its own copy of the policy, whose weights ``load`` replaces.

    Prompts of equal length that wait are sampled together, in a batch of at most ``max_num_seqs`` responses (one group
    at least). Each group draws from a generator of its own, seeded by (run seed, prompt, attempt), so company changes
    a group by rounding errors only.
    """

    def __init__(self, model: PreTrainedModel, eos_token_id: int, pad_token_id: int, max_num_seqs: int) -> None:
        """``model`` is owned by the engine and must not be trained."""
        self._model = model.eval()
        self._eos, self._pad, self._max_num_seqs = eos_token_id, pad_token_id, max_num_seqs
        self._waiting: list[_Asked] = []
        self.step = 0

    @override
    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        loop = asyncio.get_running_loop()
        asked = _Asked(prompt, sampling, attempt, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._answer_a_batch)
        self._waiting.append(asked)
        return await asked.answer

    def load(self, weights: dict[str, torch.Tensor], step: int) -> None:
        """Serve ``weights`` from now on, as version ``step``."""
        missing, unexpected = self._model.load_state_dict(weights, strict=False)
        if unexpected or [name for name in missing if name != "lm_head.weight"]:
            raise ValueError(f"weights do not fit the engine's model: missing {missing}, unexpected {unexpected}")
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
            groups = self._sample(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the callers
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_exception(error)
            return
        for asked, group in zip(batch, groups, strict=True):
            if not asked.answer.done():
                asked.answer.set_result(group)

    def _sample(self, batch: Sequence[_Asked]) -> list[PromptGroup]:
        """Sample prompts of equal length and equal sampling."""
        sampling = batch[0].sampling
        size = sampling.group_size
        token_ids = torch.from_numpy(np.stack([asked.prompt.token_ids for asked in batch]).repeat(size, axis=0))
        draw = _Draw([derive_seed(sampling.seed, asked.prompt.prompt_id, asked.attempt) for asked in batch], sampling)
        config = GenerationConfig(
            do_sample=False,  # _Draw draws
            max_new_tokens=sampling.max_tokens,
            eos_token_id=[self._eos, *sampling.stop_token_ids],
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
        ends = torch.tensor([self._eos, *sampling.stop_token_ids])
        responses = [self._response(*row, ends) for row in zip(sampled, logprobs, strict=True)]
        return [
            PromptGroup(asked.prompt, asked.attempt, tuple(responses[number * size : (number + 1) * size]))
            for number, asked in enumerate(batch)
        ]

    def _response(self, token_ids: torch.Tensor, logprobs: torch.Tensor, ends: torch.Tensor) -> Response:
        stops = torch.isin(token_ids, ends).nonzero()
        length = int(stops[0]) + 1 if len(stops) else len(token_ids)
        return Response(
            token_ids[:length].numpy().astype(np.int64),
            logprobs[:length].numpy().astype(np.float32),
            np.full(length, self.step, dtype=np.int64),
            "stop" if len(stops) else "length",
        )


class _Draw(LogitsProcessor):
    """Processor that leaves one token in each row: one drawn from the scores, or at temperature 0 the likeliest.

    The likeliest after adding Gumbel noise is a draw from softmax(scores), Maddison et al. 2014 (arXiv:1411.0030).
    """

    def __init__(self, seeds: Sequence[int], sampling: Sampling) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._sampling = sampling
        self.logprobs: list[torch.Tensor] = []
        """log-prob of the token drawn in each row, [rows] for each position"""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        logprobs = scores.float().log_softmax(-1)
        drawn = logprobs.argmax(-1, keepdim=True)
        if self._sampling.temperature:
            shape = (self._sampling.group_size, scores.shape[1])
            noise = torch.cat([torch.empty(shape).exponential_(generator=each) for each in self._generators])
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
    """Take the first request, and those of its length and sampling that fit into a batch with it."""
    first = waiting[0]
    kind = (len(first.prompt.token_ids), first.sampling)
    alike = [asked for asked in waiting if (len(asked.prompt.token_ids), asked.sampling) == kind]
    return alike[: max(1, max_num_seqs // first.sampling.group_size)]
