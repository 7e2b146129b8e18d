"""Sampling and scoring of held-out prompts: here and nowhere else. P prompts, n samples of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lpo_ray.errors import GroupLost, TooManyLost
from lpo_ray.evaluation.estimators import bootstrap_interval, of_turns, pass_at_k
from lpo_ray.interfaces import RolloutEngine, Verifier
from lpo_ray.records import Evaluation, FloatArray, Prompt, Sampling, ScoredGroup

ATTEMPTS = 3
"""attempts of one prompt before the evaluation leaves it out"""


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

    A prompt that is lost three times is left out and counted. Raises TooManyLost when all are lost.
    """
    scored: list[ScoredGroup] = []
    lost = await score_prompts(
        rollout, verifier, prompts, sampling,
        max_in_flight=max_in_flight, on_scored=scored.append, on_progress=on_progress,
    )  # fmt: skip
    if not scored:
        raise all_lost(lost)
    place = {prompt.prompt_id: number for number, prompt in enumerate(prompts)}
    scored.sort(key=lambda found: place[found.group.prompt.prompt_id])
    rewards: FloatArray = np.stack([group.rewards for group in scored])
    num_correct = (rewards >= pass_reward).sum(axis=1)
    estimates = {k: pass_at_k(num_correct, sampling.group_size, k) for k in ks}
    lengths = [len(response.token_ids) for group in scored for response in group.group.responses]
    figures = _of_turns(scored, rewards >= pass_reward, sampling.max_turns)
    return Evaluation(
        pass_at={k: float(values.mean()) for k, values in estimates.items()},
        ci95={k: bootstrap_interval(values) for k, values in estimates.items()},
        num_prompts=len(scored),
        samples_per_prompt=sampling.group_size,
        num_lost=len(lost),
        mean_reward=float(rewards.mean()),
        mean_length=float(np.mean(lengths)),
        num_correct=num_correct,
        prompt_ids=tuple(group.group.prompt.prompt_id for group in scored),
        of_turns={name: (float(values.mean()), bootstrap_interval(values)) for name, values in figures.items()},
    )


def _of_turns(scored: Sequence[ScoredGroup], passed: np.ndarray, most: int) -> dict[str, np.ndarray]:
    """Compute [P] turns of a response and the share solved in each; {} when there is no conversation among them."""
    if not any(response.conversation for group in scored for response in group.group.responses):
        return {}
    turns = np.array([[len(response.turns) for response in group.group.responses] for group in scored])
    return of_turns(passed, turns, max(most, int(turns.max())))


async def score_prompts(
    rollout: RolloutEngine,
    verifier: Verifier,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    max_in_flight: int,
    on_scored: Callable[[ScoredGroup], None],
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Sample and score all prompts, ``max_in_flight`` at once; ``on_scored`` gets each group when it is complete, in
    any order, and ``on_progress`` how many of how many prompts are done. Returns the prompts that were lost ATTEMPTS
    times, by id, each with the last reason.
    """
    places = asyncio.Semaphore(max_in_flight)
    lost: dict[str, str] = {}
    done = 0

    async def one(prompt: Prompt) -> None:
        nonlocal done
        async with places:
            found = await _scored(rollout, verifier, prompt, sampling)
        if isinstance(found, GroupLost):
            lost[prompt.prompt_id] = found.reason
        else:
            on_scored(found)
        done += 1
        if on_progress is not None:
            on_progress(done, len(prompts))

    async with asyncio.TaskGroup() as tasks:
        for prompt in prompts:
            tasks.create_task(one(prompt))
    return {prompt.prompt_id: lost[prompt.prompt_id] for prompt in prompts if prompt.prompt_id in lost}


def all_lost(lost: Mapping[str, str]) -> TooManyLost:
    """Make the error to raise when no prompt was scored."""
    prompt, reason = next(iter(lost.items()))
    return TooManyLost(
        f"all {len(lost)} evaluation prompts were lost {ATTEMPTS} times; nothing can be said. {prompt}: {reason}"
    )


async def _scored(
    rollout: RolloutEngine, verifier: Verifier, prompt: Prompt, sampling: Sampling
) -> ScoredGroup | GroupLost:
    """Score the first attempt that is not lost, or return how the last one was lost."""
    attempt = 0
    while True:
        try:
            return await verifier.score(await rollout.sample(prompt, sampling, attempt))
        except GroupLost as lost:
            attempt += 1
            if attempt == ATTEMPTS:
                return lost
