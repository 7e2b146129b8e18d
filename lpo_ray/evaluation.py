"""Pass@k on held-out prompts: the unbiased estimator, with intervals over prompts. P prompts, n samples of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lpo_ray.errors import GroupLost, TooManyLost
from lpo_ray.interfaces import RolloutEngine, Verifier
from lpo_ray.records import FloatArray, IntArray, Prompt, Sampling, ScoredGroup

ATTEMPTS = 3
"""of one prompt before the evaluation leaves it out"""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Result of one evaluation."""

    pass_at: dict[int, float]
    ci95: dict[int, tuple[float, float]]
    num_prompts: int
    """prompts that count; those that were lost are left out, never counted as failed"""
    samples_per_prompt: int
    num_lost: int
    mean_reward: float
    mean_length: float
    """response tokens"""
    num_correct: IntArray
    """[P] passing responses of each prompt"""

    def to_json(self) -> dict[str, object]:
        """The form of summary.json."""
        return {
            **{f"pass@{k}": value for k, value in self.pass_at.items()},
            "num_prompts": self.num_prompts,
            "samples_per_prompt": self.samples_per_prompt,
            "ci95": {f"pass@{k}": list(interval) for k, interval in self.ci95.items()},
            "lost": self.num_lost,
            "mean_reward": self.mean_reward,
            "mean_length": self.mean_length,
        }


def pass_at_k(num_correct: IntArray, num_samples: int, k: int) -> np.ndarray:
    """[P] unbiased estimate 1 - C(n - c, k)/C(n, k) of passing at least once in k draws (Chen et al. 2021, Eq. 1)."""
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k}; expected 1..{num_samples}, the samples of each prompt")
    wrong = num_samples - np.asarray(num_correct, dtype=np.float64)[:, None]
    draws = np.arange(k)
    return 1.0 - np.prod(np.clip(wrong - draws, 0, None) / (num_samples - draws), axis=1)


def bootstrap_interval(
    values: np.ndarray, *, confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values`` [P], resampling prompts: a prompt's samples stay together."""
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = rng.choice(values, size=(resamples, len(values))).mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


async def evaluate(
    rollout: RolloutEngine,
    verifier: Verifier,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    ks: Sequence[int],
    pass_reward: float,
    max_in_flight: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Sample and score all prompts. A response passes when its reward is at least ``pass_reward``.

    A prompt that is lost three times is left out and counted; when all are lost, TooManyLost.
    """
    places = asyncio.Semaphore(max_in_flight)
    done = 0

    async def one(prompt: Prompt) -> ScoredGroup | None:
        nonlocal done
        async with places:
            scored = await _scored(rollout, verifier, prompt, sampling)
        done += 1
        if on_progress is not None:
            on_progress(done, len(prompts))
        return scored

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one(prompt)) for prompt in prompts]
    scored = [group for group in (task.result() for task in running) if group is not None]
    if not scored:
        raise TooManyLost(f"all {len(prompts)} evaluation prompts were lost {ATTEMPTS} times; nothing can be said")
    rewards: FloatArray = np.stack([group.rewards for group in scored])
    num_correct = (rewards >= pass_reward).sum(axis=1)
    estimates = {k: pass_at_k(num_correct, sampling.group_size, k) for k in ks}
    lengths = [len(response.token_ids) for group in scored for response in group.group.responses]
    return Evaluation(
        pass_at={k: float(values.mean()) for k, values in estimates.items()},
        ci95={k: bootstrap_interval(values) for k, values in estimates.items()},
        num_prompts=len(scored),
        samples_per_prompt=sampling.group_size,
        num_lost=len(prompts) - len(scored),
        mean_reward=float(rewards.mean()),
        mean_length=float(np.mean(lengths)),
        num_correct=num_correct,
    )


async def _scored(rollout: RolloutEngine, verifier: Verifier, prompt: Prompt, sampling: Sampling) -> ScoredGroup | None:
    for attempt in range(ATTEMPTS):
        try:
            return await verifier.score(await rollout.sample(prompt, sampling, attempt))
        except GroupLost:
            continue
    return None
