"""Groups in the samples of a run: what lists show of each, which are wanted, in what order.

One file is read at a time, and of it the columns that are needed.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from lpo_ray.errors import DataError
from lpo_ray.records import DoubleArray, IntArray
from lpo_ray.telemetry.samples import samples_path
from lpo_ray.tools.view.sample_columns import Key, floats, oldest_versions, read_columns, softmax, stamp

MOST_FILES = 64
"""files that one question reads; the answer says where it stopped"""
PAGE = 50
EXCERPT = 160
"""characters of a prompt in a list"""
COLUMNS = (
    "prompt_id", "attempt", "prompt", "verifier", "reward", "log_target", "log_ratio", "anchor", "tempering",
    "versions", "finish_reason",
)  # fmt: skip
SEARCHED = ("prompt_id", "prompt", "response", "answer", "detail")
Order = Literal["step", "reward", "spread", "staleness", "gap", "moved", "tokens"]


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """One group in a list. A value that cannot be computed is NaN or Inf."""

    step: int
    prompt_id: str
    attempt: int
    prompt: str
    """its first EXCERPT characters"""
    verifier: str
    rewards: tuple[float, ...]
    """[K]"""
    reward: float
    """their mean"""
    spread: float
    """largest less smallest reward; 0: no response is better than another"""
    staleness: int
    """staleness of its oldest token: the step before this one less the version that sampled it"""
    gap: float
    """total variation of w* and P, before the update: 0 to 1"""
    moved: float | None
    """total variation of P before and after the step; None: not measured"""
    tokens: int
    """tokens of its longest response"""
    cut: int
    """responses that ended at the token limit"""


ORDERS: Mapping[Order, Callable[[GroupSummary], float]] = {
    "step": lambda group: group.step,
    "reward": lambda group: group.reward,
    "spread": lambda group: group.spread,
    "staleness": lambda group: group.staleness,
    "gap": lambda group: group.gap,
    "moved": lambda group: math.nan if group.moved is None else group.moved,
    "tokens": lambda group: group.tokens,
}


@dataclass(frozen=True)  # no slots: FastAPI asks for these as query parameters
class Wanted:
    """Filter of the groups to list; None and "" want all."""

    first: int | None = None
    """step"""
    last: int | None = None
    least_reward: float | None = None
    """mean of the group"""
    most_reward: float | None = None
    mixed: bool = False
    """only groups whose rewards differ"""
    verifier: str = ""
    least_staleness: int | None = None
    most_staleness: int | None = None
    measured: bool = False
    """only groups whose P after the step was measured"""
    text: str = ""
    """text to find in prompt, response, answer, detail or prompt_id, whatever the case"""

    def takes(self, group: GroupSummary) -> bool:
        """Tell whether the group is wanted, as far as a summary tells: all but ``text``."""
        return (
            (self.least_reward is None or group.reward >= self.least_reward)
            and (self.most_reward is None or group.reward <= self.most_reward)
            and (not self.mixed or group.spread != 0)
            and (not self.verifier or group.verifier == self.verifier)
            and (self.least_staleness is None or group.staleness >= self.least_staleness)
            and (self.most_staleness is None or group.staleness <= self.most_staleness)
            and (not self.measured or group.moved is not None)
        )


@dataclass(frozen=True, slots=True)
class Listing:
    """Page of the groups that are wanted."""

    groups: Sequence[GroupSummary]
    total: int
    page: int
    pages: int
    read: Sequence[int]
    """steps that were read, newest first"""
    left: Sequence[int]
    """steps in the range that were not, as MOST_FILES had been read; newest first"""
    unreadable: Mapping[int, str]
    """step -> why"""
    verifiers: Sequence[str]
    """verifiers of all groups of the steps that were read"""


def sample_steps(folder: Path) -> list[int]:
    """List the steps of which a run has samples, ascending."""
    names = (path.name for path in (folder / "samples").glob("step_*.parquet"))
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"step_(\d{1,9})\.parquet", name, re.A)))


def list_groups(
    folder: Path, wanted: Wanted, order: Order = "step", *, ascending: bool = False, page: int = 0
) -> Listing:
    """Make a page of the groups that are wanted, of the newest MOST_FILES steps in the range. Groups of which the order
    is not known come last.
    """
    steps = [
        step
        for step in reversed(sample_steps(folder))
        if (wanted.first is None or step >= wanted.first) and (wanted.last is None or step <= wanted.last)
    ]
    found: list[GroupSummary] = []
    verifiers: set[str] = set()
    unreadable: dict[int, str] = {}
    for step in steps[:MOST_FILES]:
        try:
            path = samples_path(folder, step)
            groups = summaries(path, step, stamp(path))
            keys = with_text(path, wanted.text.casefold(), stamp(path)) if wanted.text else None
        except DataError as error:
            unreadable[step] = str(error)
            continue
        verifiers.update(group.verifier for group in groups)
        found += [
            group
            for group in groups
            if wanted.takes(group) and (keys is None or (group.prompt_id, group.attempt) in keys)
        ]
    found = _ordered(found, ORDERS[order], ascending=ascending)
    pages = max(1, -(-len(found) // PAGE))
    page = min(max(page, 0), pages - 1)
    return Listing(
        groups=found[page * PAGE : (page + 1) * PAGE],
        total=len(found),
        page=page,
        pages=pages,
        read=steps[:MOST_FILES],
        left=steps[MOST_FILES:],
        unreadable=unreadable,
        verifiers=sorted(verifiers),
    )


@functools.lru_cache(maxsize=2 * MOST_FILES)
def summaries(path: Path, step: int, stamp: str) -> Sequence[GroupSummary]:
    """Summarise all groups of a file, in its order; read once for each ``stamp``. DataError when the file is none of
    ours.
    """
    table = read_columns(path, COLUMNS, optional=("after",))
    texts = {name: table[name].to_pylist() for name in ("prompt_id", "attempt", "prompt", "verifier", "finish_reason")}
    numbers = {
        name: floats(table, name) for name in ("reward", "log_target", "log_ratio", "anchor", "tempering", "after")
    }
    oldest, lengths = oldest_versions(table["versions"])
    rows: dict[Key, list[int]] = {}
    for row, key in enumerate(zip(texts["prompt_id"], texts["attempt"], strict=True)):
        rows.setdefault(key, []).append(row)
    with np.errstate(invalid="ignore"):  # of rewards that are NaN or Inf
        return [_summary(step, key, at, texts, numbers, oldest, lengths) for key, at in rows.items()]


@functools.lru_cache(maxsize=2 * MOST_FILES)
def with_text(path: Path, text: str, stamp: str) -> frozenset[Key]:
    """Find the groups of a file in which ``text`` (casefolded) is; read once for each ``stamp``."""
    columns = ("prompt_id", "attempt", "prompt", "response", "answer")
    table = read_columns(path, columns, optional=("detail",), by_segment=True)
    found = np.zeros(len(table), dtype=bool)
    for name in SEARCHED:
        found |= np.fromiter(
            (text in str(value or "").casefold() for value in table[name].to_pylist()), bool, len(table)
        )
    keys = table.filter(pa.array(found)).select(["prompt_id", "attempt"])
    return frozenset(zip(keys["prompt_id"].to_pylist(), keys["attempt"].to_pylist(), strict=True))


def _summary(
    step: int,
    key: Key,
    at: Sequence[int],
    texts: Mapping[str, Sequence[object]],
    numbers: Mapping[str, DoubleArray],
    oldest: IntArray,
    lengths: IntArray,
) -> GroupSummary:
    """Summarise the group in the rows ``at``."""
    of = {name: values[at] for name, values in numbers.items()}
    offset = (1.0 - of["tempering"]) * of["anchor"]  # see records.TargetGroup.offset
    before, rewards = softmax(of["log_ratio"] - offset), of["reward"]
    measured = not np.isnan(of["after"]).all()
    return GroupSummary(
        step=step,
        prompt_id=key[0],
        attempt=key[1],
        prompt=str(texts["prompt"][at[0]])[:EXCERPT],
        verifier=str(texts["verifier"][at[0]]),
        rewards=tuple(rewards.tolist()),
        reward=float(rewards.mean()),
        spread=float(rewards.max() - rewards.min()),
        staleness=step - 1 - int(oldest[at].min()),
        gap=_total_variation(np.exp(of["log_target"]), before),
        moved=_total_variation(softmax(of["after"] - offset), before) if measured else None,
        tokens=int(lengths[at].max()),
        cut=sum(texts["finish_reason"][row] == "length" for row in at),
    )


def _total_variation(one: DoubleArray, other: DoubleArray) -> float:
    return float(0.5 * np.abs(one - other).sum())


def _ordered(
    groups: Sequence[GroupSummary], by: Callable[[GroupSummary], float], *, ascending: bool
) -> list[GroupSummary]:
    known = [group for group in groups if not math.isnan(by(group))]
    return sorted(known, key=by, reverse=not ascending) + [group for group in groups if math.isnan(by(group))]
