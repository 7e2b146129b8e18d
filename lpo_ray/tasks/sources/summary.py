"""Summary of a run's data, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from lpo_ray.interfaces import PromptSource
from lpo_ray.tasks.sources.dataset import DatasetSource
from lpo_ray.tasks.sources.prompt_file import PromptFile
from lpo_ray.tasks.sources.source import first_usable

QUANTILES = {"min": 0.0, "50 %": 0.5, "90 %": 0.9, "99 %": 0.99, "max": 1.0}
FAULTS = 10
"""rows that cannot be used, of which the reason is told"""
SAMPLED = 1000
"""prompts of a generator that are looked at"""


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """Numbers of one split.

    Example: ``SplitSummary(7500, 12, 3, {"min": 40, "50 %": 92, "90 %": 160, "99 %": 301, "max": 2410}, False, 0, {})``
    """

    rows: int
    left_out: int
    """rows whose prompt leaves no room for a response"""
    duplicates: int
    """prompts that are one before them"""
    tokens: Mapping[str, int]
    """quantiles over all prompts that can be read, those left out as too long included"""
    sampled: bool
    """whether these are the first SAMPLED prompts of a generator, which has no end"""
    unusable: int = 0
    """prompts that are left out, as they, or by the verifier their answers, cannot be read"""
    faults: Mapping[int, str] = field(default_factory=dict)
    """row of the first FAULTS of these, as messages count them -> column and reason"""


def summarise(source: PromptSource, num_heldout: int) -> dict[str, SplitSummary]:
    """Sum up train, and heldout where there is one. A generator has ``num_heldout`` held-out prompts."""
    if isinstance(source, DatasetSource):
        files = {"train": source.train_file, "heldout": source.heldout_file}
        return {split: _of_file(file) for split, file in files.items() if file is not None}
    splits = {"train": first_usable(source, SAMPLED)}
    if num_heldout:
        splits["heldout"] = list(source.heldout(num_heldout))
    return {
        split: SplitSummary(
            rows=len(prompts),
            left_out=0,
            duplicates=len(prompts) - len({prompt.token_ids.tobytes() for prompt in prompts}),
            tokens=_quantiles(np.array([len(prompt.token_ids) for prompt in prompts], dtype=np.int32)),
            sampled=split == "train",
        )
        for split, prompts in splits.items()
    }


def _of_file(file: PromptFile) -> SplitSummary:
    lengths = file.found.lengths
    faults = {file.row(position): fault for position, fault in file.faults.items()}
    tokens = _quantiles(lengths[lengths > 0])
    shown = dict(islice(faults.items(), FAULTS))
    return SplitSummary(len(lengths), len(lengths) - len(file), file.num_duplicates, tokens, False, len(faults), shown)


def _quantiles(lengths: npt.NDArray[np.int32]) -> dict[str, int]:
    values = np.quantile(lengths, list(QUANTILES.values()), method="higher")
    return {name: int(value) for name, value in zip(QUANTILES, values, strict=True)}
