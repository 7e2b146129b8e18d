"""Simulated engines, verifier, learner and transport: they take the time that real ones would, and do nothing else.

An engine decodes at most ``slots`` responses at once, each at a constant rate: decoding is bound by memory bandwidth,
so a sequence hardly slows its neighbours down. While weights are published no engine decodes.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from typing_extensions import override

from lpo_ray.common.seeds import derive_seed
from lpo_ray.common.silence import Progress
from lpo_ray.errors import ComponentDied, LearnerLost
from lpo_ray.interfaces import Environments, Learner, TargetBuilder, Verifier, WeightTransport
from lpo_ray.records import (
    Anchor,
    ConversationId,
    FloatArray,
    IntArray,
    Observation,
    Process,
    ProjectedGroup,
    Prompt,
    PromptGroup,
    Publication,
    Response,
    Sampling,
    ScoredGroup,
    ScoringItem,
    StepNorms,
    StepReport,
    TargetGroup,
    TrainBatch,
    Turn,
    TurnRequest,
    UpdateReport,
    WeightsVersion,
    zero_anchor,
)
from lpo_ray.rollout.member import Member, Worker
from lpo_ray.rollout.pool import RolloutPool

ANSWER_TOKENS = 16
"""tokens that an environment says behind a turn"""


@dataclass(frozen=True, slots=True)
class Hardware:
    """How fast things are. Rates in response tokens a second."""

    mean_tokens: float
    """mean length of a response, or of a turn"""
    length_variation: float
    """standard deviation of the length over its mean; lengths are log-normal, cut at sampling.max_tokens"""
    slots: int
    """responses that an engine decodes at once"""
    decode_rate: float
    """rate of one response"""
    train_rate: float
    """rate of the whole learner, all ranks together"""
    anchor_share: float
    """seconds of the anchor pass over those of the updates"""
    verify_seconds: float
    publish_seconds: float
    mean_turns: float
    """mean number of a conversation's turns, geometrically distributed; 1: there are none"""
    environment_seconds: float
    """mean time that an environment takes behind a turn, exponentially distributed"""
    hours_between_failures: float
    """mean time between failures of one engine, exponentially distributed; 0: never"""
    restart_seconds: float


class ActiveClock:
    """Clock that counts the virtual seconds during which engines decode, and knows when each version was published."""

    def __init__(self) -> None:
        self._paused_since: float | None = None
        self._paused = 0.0
        self.published: list[float] = []
        """[step] -> when its weights began to decode"""
        self.decoded = 0
        """tokens that all engines have decoded"""

    def now(self) -> float:
        """Return the seconds so far."""
        at = asyncio.get_running_loop().time() if self._paused_since is None else self._paused_since
        return at - self._paused

    async def publish(self, seconds: float) -> None:
        """Stand still for ``seconds``; the next version decodes from then on."""
        self._paused_since = asyncio.get_running_loop().time()
        await asyncio.sleep(seconds)
        self._paused += asyncio.get_running_loop().time() - self._paused_since
        self._paused_since = None
        self.published.append(self.now())

    async def until(self, moment: float) -> None:
        """Wait until the clock shows ``moment``."""
        while (left := moment - self.now()) > 1e-9:
            await asyncio.sleep(left)


class SimulatedEngine(Worker):
    """One simulated engine. Make it inside a running event loop."""

    def __init__(self, name: str, hardware: Hardware, clock: ActiveClock, seed: int, start_seconds: float) -> None:
        self._name, self._hardware, self._clock, self._start_seconds = name, hardware, clock, start_seconds
        self._rng = np.random.default_rng(seed)
        self._free = [0.0] * hardware.slots
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @override
    async def start(self, seconds: float) -> Process:
        await asyncio.sleep(self._start_seconds)
        if self._hardware.hours_between_failures:
            life = self._rng.exponential(3600 * self._hardware.hours_between_failures)
            asyncio.get_running_loop().call_later(life, self.kill)
        return Process(0, "", "simulated", ())

    @override
    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        sizes = lengths(
            self._hardware, sampling.max_tokens, sampling.group_size, sampling.seed, prompt.prompt_id, attempt
        )
        starts = await self._decoded(sizes)
        turns = (self._turn(start, size, sampling.max_tokens) for start, size in zip(starts, sizes, strict=True))
        responses = (Response(t.token_ids, t.behaviour_logprobs, t.versions, t.finish_reason) for t in turns)
        return PromptGroup(prompt, attempt, tuple(responses))

    @override
    async def turn(self, request: TurnRequest) -> Turn:
        (size,) = lengths(self._hardware, request.max_tokens, 1, request.seed())
        (start,) = await self._decoded([size])
        return self._turn(start, size, request.max_tokens)

    async def _decoded(self, sizes: Sequence[int]) -> list[float]:
        """Decode sequences of these lengths, as slots get free; returns when each began."""
        rate, now = self._hardware.decode_rate, self._clock.now()
        starts = []
        for size in sizes:
            start = max(now, heapq.heappop(self._free))
            heapq.heappush(self._free, start + size / rate)
            starts.append(start)
        work = asyncio.ensure_future(self._clock.until(max(s + n / rate for s, n in zip(starts, sizes, strict=True))))
        try:
            await asyncio.wait({work, self._broken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
        if self._broken.done():
            raise ComponentDied(self._name, "simulated failure")
        self._clock.decoded += sum(sizes)
        return starts

    @override
    async def progress(self) -> Progress:
        return Progress(self._clock.now())  # decodes while its clock goes

    @override
    async def close(self, seconds: float) -> None:
        pass

    @override
    async def inspect(self) -> str:
        return "simulated"

    @override
    def kill(self) -> None:
        if not self._broken.done():
            self._broken.set_result(None)

    def _turn(self, start: float, size: int, most: int) -> Turn:
        moments = start + np.arange(size) / self._hardware.decode_rate
        versions = np.searchsorted(np.asarray(self._clock.published), moments, side="right") - 1
        full = size == most
        return Turn(
            np.ones(size, np.int64),
            np.full(size, -1, np.float32),
            np.maximum(versions, 0),
            "length" if full else "stop",
        )


def lengths(hardware: Hardware, most: int, count: int, seed: int, *name: str | int) -> list[int]:
    """Draw log-normal lengths, ``most`` tokens at most."""
    rng = np.random.default_rng(derive_seed(seed, *name))
    variance = np.log1p(hardware.length_variation**2)
    drawn = rng.lognormal(np.log(hardware.mean_tokens) - variance / 2, np.sqrt(variance), count)
    return [int(n) for n in np.clip(drawn, 1, most)]


@dataclass(slots=True)
class SimulatedEnvironments(Environments):
    """Environments that take their time, say ANSWER_TOKENS behind a turn, and end at random."""

    hardware: Hardware
    turns: Counter[ConversationId] = field(default_factory=Counter)

    @override
    async def open(self, conversation: ConversationId, prompt: Prompt) -> IntArray:
        return prompt.token_ids

    @override
    async def reply(self, conversation: ConversationId, turn: Turn) -> Observation:
        self.turns[conversation] += 1
        rng = np.random.default_rng(derive_seed(0, *conversation, self.turns[conversation]))
        await asyncio.sleep(rng.exponential(self.hardware.environment_seconds))
        if rng.random() < 1 / self.hardware.mean_turns:
            return Observation(None, done=True)
        return Observation(np.ones(ANSWER_TOKENS, np.int64), author="tool")

    @override
    async def end(self, conversation: ConversationId) -> None:
        self.turns.pop(conversation, None)


@dataclass(slots=True)
class SimulatedVerifier(Verifier):
    """Verifier that passes half of the responses."""

    seconds: float

    @override
    async def score(self, group: PromptGroup) -> ScoredGroup:
        await asyncio.sleep(self.seconds)
        rng = np.random.default_rng(derive_seed(0, *group.key))
        return ScoredGroup(group, rng.integers(0, 2, len(group.responses)).astype(np.float32))


class SimulatedTargetBuilder(TargetBuilder):
    """Builder of flat targets. The real one is an actor, so its work is not the controller's."""

    @override
    async def build(self, groups: Sequence[ScoredGroup], anchor: Anchor, step: int) -> list[TargetGroup]:
        return [
            TargetGroup(scored, np.full(len(scored.rewards), -np.log(len(scored.rewards)), np.float32), found, 1.0)
            for scored, found in zip(groups, anchor, strict=True)
        ]


@dataclass(slots=True)
class SimulatedLearner(Learner):
    """Learner that takes the time of the batch's tokens."""

    hardware: Hardware
    world_size: int

    @override
    async def log_ratios(self, groups: Sequence[ScoredGroup]) -> Anchor:
        tokens = sum(scored.group.num_tokens for scored in groups)
        await asyncio.sleep(self.hardware.anchor_share * tokens / self.hardware.train_rate)
        return zero_anchor(groups)

    @override
    async def project(self, batch: TrainBatch) -> StepReport:
        await asyncio.sleep(sum(update.num_tokens for update in batch.updates) / self.hardware.train_rate)
        norms = StepNorms(1.0, applied=True, gradient_by_kind={}, update_ratio_by_kind={})
        reports = []
        for number, update in enumerate(batch.updates):
            targets = {p.item.group.key: p.item for share in update.shares for mb in share for p in mb.pieces}
            reports.append(UpdateReport(tuple(_projected(t, number) for t in targets.values()), norms, 1, 0.0, ()))
        return StepReport(tuple(reports))

    @override
    async def logprobs(self, forwards: Sequence[Sequence[ScoringItem]], temperature: float) -> list[FloatArray]:
        bundles = itertools.chain.from_iterable(forwards)
        return [np.zeros(len(response), np.float32) for _, responses in bundles for response in responses]

    @override
    async def digest(self) -> str:
        return "simulated"

    @override
    async def save(self, folder: Path) -> None:
        pass

    @override
    async def restore(self, folder: Path, written_by: int) -> None:
        pass

    @override
    async def reform(self, lost: LearnerLost) -> None:
        """No rank fails here."""
        raise lost


class SimulatedTransport(WeightTransport):
    """Transport during whose publish all engines stand still."""

    def __init__(self, pool: RolloutPool[SimulatedEngine], clock: ActiveClock, seconds: float) -> None:
        self._pool, self._clock, self._seconds = pool, clock, seconds
        self._current: WeightsVersion | None = None
        pool.admit = self.admit

    @override
    async def publish(self, step: int) -> Publication:
        await self._clock.publish(self._seconds)
        self._current = WeightsVersion(step, "simulated")
        self._pool.serve(await self._pool.started(), self._current)
        return Publication(self._current, 0, max(self._seconds, 1e-9), self._pool.statuses(), 0.0, {})

    async def admit(self, member: Member[SimulatedEngine]) -> None:
        """Give the current weights to a new engine."""
        if self._current is not None:
            self._pool.serve([member], self._current)


def _projected(target: TargetGroup, update: int) -> ProjectedGroup:
    zeros = np.zeros(len(target.log_target), np.float32)
    arrays = dict.fromkeys(ProjectedGroup.ARRAYS, zeros)
    prompt_id, attempt = target.group.key
    return ProjectedGroup(prompt_id, attempt, update, tuple(range(len(zeros))), loss=0.0, **arrays)
