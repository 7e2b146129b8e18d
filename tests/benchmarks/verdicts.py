"""Verdicts per second through the pool of verifier processes, and what one response that spins costs the others.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/verdicts.py OUT.json [--repeats 5] [--processes 2]

Groups of 8 responses, as many asked at once as a run has on their way. Every group is of a problem of its own, so that
no verifier can answer from memory; within a group responses repeat, as a policy's do.

The spinning response: a verifier never returns for it, under a deadline of SPIN_DEADLINE seconds. Its group goes to a
process whole, misses the deadline, and is asked again one by one; both times it goes on in a spare process, which runs
when nobody else wants to. Windows of as long as that, with and without it, take turns; the other groups are counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from random import Random

from actors.verifier.process_pool import ProcessPoolSettings, VerdictPool
from lpo_ray.tasks.sources.countdown_problems import answer_json, generate
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.countdown import countdown
from tests.benchmarks.math_responses import math_group

GROUP_SIZE = 8
AT_ONCE = 64
"""groups on their way"""
BARS = {"countdown": 5000.0, "math": 300.0}
"""verdicts per second on two cores"""
SPIN_DEADLINE = 2.0
SPINS = "while True: pass"
SPINNER = "tests.benchmarks.verdicts:spins_on_one"
THOUGHTS = "<think>{} Let me try some of them: {} is too large, so I have to subtract. </think>"


def spins_on_one(prompt: str, response: str, answer: str) -> Verdict:
    """Countdown, but for one response."""
    while response == SPINS:
        pass
    return countdown(prompt, response, answer)


def countdown_group(number: int) -> list[Case]:
    """Two right, four wrong, two malformed; some with their thoughts."""
    problem = generate(0, number, split="train", counts=(3, 4))
    rng = Random(number)
    first, *rest = problem.numbers
    wrong = [f"{first}{rng.choice('+-*')}{rng.choice('+-*').join(map(str, rest))}" for _ in range(4)]
    expressions = [problem.solution, problem.solution, *wrong, f"{first} + ({rest[0]}", "I do not know"]
    thoughts = THOUGHTS.format("I have to use every number once. " * rng.randint(1, 20), wrong[0])
    responses = [f"{thoughts}<answer>{text}</answer>" if rng.random() < 0.5 else text for text in expressions]
    return [Case("", response, answer_json(problem)) for response in responses]


def settings(processes: int, deadline: float) -> ProcessPoolSettings:
    return ProcessPoolSettings(
        num_processes=processes, deadline_seconds=deadline, slow_seconds=deadline, recycle_after=10**9, memory_mib=4096
    )


async def ask(pool: VerdictPool, verifier: str, groups: list[list[Case]]) -> list[float]:
    """Rewards; AT_ONCE groups at a time. A response without a verdict ends the benchmark."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(group: list[Case]) -> list[float]:
        async with room:
            verdicts = await pool.verdicts(verifier, group)
        unscored = [verdict.detail for verdict in verdicts if verdict.reward is None]
        if unscored:
            raise RuntimeError(f"{verifier} gave no verdict: {unscored[0]}")
        return [verdict.reward for verdict in verdicts if verdict.reward is not None]

    return [reward for rewards in await asyncio.gather(*map(one, groups)) for reward in rewards]


async def throughput(
    verifier: str, make: Callable[[int], list[Case]], num_groups: int, repeats: int, processes: int
) -> dict[str, object]:
    pool = VerdictPool(settings(processes, 10.0))
    rounds, rewards = [], []
    for repeat in range(-1, repeats):  # the first one imports what the verifier needs
        groups = [make(repeat * num_groups + number) for number in range(num_groups, 2 * num_groups)]
        started = time.perf_counter()
        rewards = await ask(pool, verifier, groups)
        rounds.append(num_groups * GROUP_SIZE / (time.perf_counter() - started))
    await pool.close()
    found = statistics.median(rounds[1:])
    return {
        "verdicts_per_second": found,
        "bar": BARS[verifier],
        "passed": found >= BARS[verifier],
        "rounds": rounds[1:],
        "groups_per_round": num_groups,
        "mean_reward": statistics.mean(rewards),
    }


async def spinning(repeats: int, processes: int) -> dict[str, object]:
    pool = VerdictPool(settings(processes, SPIN_DEADLINE))
    others = [countdown_group(number) for number in range(256)]
    await ask(pool, SPINNER, others)
    rates: dict[bool, list[float]] = {False: [], True: []}
    held, details = [], set()
    for _ in range(repeats):
        for with_it in (False, True):
            spinning_group = asyncio.ensure_future(held_by_spinner(pool)) if with_it else None
            started, asked = time.perf_counter(), 0
            while time.perf_counter() - started < 2 * SPIN_DEADLINE:
                await ask(pool, SPINNER, others)
                asked += len(others) * GROUP_SIZE
            rates[with_it].append(asked / (time.perf_counter() - started))
            if spinning_group is not None:
                seconds, verdict = await spinning_group
                held.append(seconds)
                details.add(verdict.detail)
    await pool.close()
    without, within = (statistics.median(rates[key]) for key in (False, True))
    return {
        "others_verdicts_per_second_without": without,
        "others_verdicts_per_second_with": within,
        "share_that_is_left": within / without,
        "rounds_without": rates[False],
        "rounds_with": rates[True],
        "deadline_seconds": SPIN_DEADLINE,
        "seconds_until_its_group_had_verdicts": held,
        "its_verdict": sorted(details),
        "note": "it goes on in a spare process, idle when others run, until the deadline: with its group, then alone",
    }


async def held_by_spinner(pool: VerdictPool) -> tuple[float, Verdict]:
    """Seconds until a group with the spinning response has its verdicts, and the verdict of that response."""
    group = countdown_group(10**6)
    group[3] = Case("", SPINS, group[3].answer)
    started = time.perf_counter()
    verdicts = await pool.verdicts(SPINNER, group)
    if any(verdict.is_scored != (number != 3) for number, verdict in enumerate(verdicts)):
        raise RuntimeError(f"expected all but one response of the spinning group to be scored, got {verdicts}")
    return time.perf_counter() - started, verdicts[3]


async def measure(repeats: int, processes: int) -> dict[str, object]:
    return {
        "countdown": await throughput("countdown", countdown_group, 1000, repeats, processes),
        "math": await throughput("math", math_group, 150, repeats, processes),
        "spinning": await spinning(repeats, processes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    found = {
        "date": datetime.now().isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load_at_start": load},
        "processes": arguments.processes,
        "repeats": arguments.repeats,
        **asyncio.run(measure(arguments.repeats, arguments.processes)),
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
