"""Breakdown of prompts into groups, by their own pass rate and by a column of the data."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from lpo_ray.errors import ConfigError
from lpo_ray.evaluation.results import PromptResult
from lpo_ray.records import Prompt
from lpo_ray.tasks.sources.columns import look_up

OWN = "pass rate"
"""name of the breakdown by the prompts' own pass rate"""
CAVEAT = (
    "groups by pass rate are made by the same responses that are counted in them: a prompt is where its luck put it, "
    "so compare two evaluations by a column of the data, or in the groups of one of them"
)
BINS = (
    ("0", 0.0),
    ("to 0.25", 0.25),
    ("to 0.5", 0.5),
    ("to 0.75", 0.75),
    ("below 1", np.nextafter(1.0, 0.0)),
    ("1", 1.0),
)
"""name and upper end of each bin; the end is in it"""
MOST_NUMBERS = 12
"""most different numbers of a column that are groups of their own; more are put into quarters"""
MOST_GROUPS = 60
"""most groups of a column of texts"""
NONE = "none"
"""group of the prompts without a value"""


def by_pass_rate(results: Sequence[PromptResult], pass_reward: float) -> dict[str, list[PromptResult]]:
    """Group results by the share of a prompt's responses that pass. Bins without a prompt are left out."""
    members: dict[str, list[PromptResult]] = {name: [] for name, _ in BINS}
    for result in results:
        rate = float(result.passed(pass_reward).mean())
        members[next(name for name, end in BINS if rate <= end)].append(result)
    return {name: found for name, found in members.items() if found}


def by_column(results: Sequence[PromptResult], groups: Mapping[str, str]) -> dict[str, list[PromptResult]]:
    """Group results by the group of each prompt, as ``groups_of`` gives them."""
    members: dict[str, list[PromptResult]] = {name: [] for name in groups.values()}
    for result in results:
        members[groups[result.prompt_id]].append(result)
    return {name: found for name, found in members.items() if found}


def groups_of(prompts: Sequence[Prompt], column: str) -> dict[str, str]:
    """Map prompt id -> group, in the order of the groups, by the value of ``column`` (a field within a column is named
    with a dot). Numbers of which there are many are put into quarters of about equal size.

    Raises ConfigError when no prompt has the column, or when it has too many different texts.
    """
    values = {prompt.prompt_id: look_up(prompt.row, column) for prompt in prompts}
    there = {prompt_id: value for prompt_id, value in values.items() if value is not None}
    if not there:
        known = ", ".join(sorted({name for prompt in prompts for name in prompt.row})) or "none"
        raise ConfigError(f"--by is {column!r}, which no prompt has; expected a column of the data, here {known}")
    numbers = [float(value) for value in there.values() if isinstance(value, int | float)]
    if len(numbers) < len(there):
        names = {prompt_id: str(value) for prompt_id, value in there.items()}
        order = sorted(set(names.values()))
    elif len(set(numbers)) <= MOST_NUMBERS:
        names = {prompt_id: f"{value}" for prompt_id, value in there.items()}
        order = [f"{value}" for value in sorted(there.values(), key=lambda value: float(str(value)))]
    else:
        names, order = _quarters(dict(zip(there, numbers, strict=True)))
    if len(set(order)) > MOST_GROUPS:
        raise ConfigError(
            f"--by is {column!r}, which has {len(set(order))} different values; expected a column with at most "
            f"{MOST_GROUPS}, or one of numbers"
        )
    place = {name: number for number, name in reversed(list(enumerate(order)))}
    found = sorted(names.items(), key=lambda item: place[item[1]])
    return {**dict(found), **{prompt_id: NONE for prompt_id in values if prompt_id not in there}}


def _quarters(numbers: Mapping[str, float]) -> tuple[dict[str, str], list[str]]:
    """Name the quarter of each number, and all quarters in order."""
    ends = np.unique(np.quantile(np.array(list(numbers.values())), [0, 0.25, 0.5, 0.75, 1]))
    order = [f"{low:g} to {high:g}" for low, high in pairwise(ends)]
    return {name: order[max(bisect_left(ends, value) - 1, 0)] for name, value in numbers.items()}, order
