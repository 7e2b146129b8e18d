"""Prompts from files: one for training, another for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lpo_ray.errors import DataError, UnusableRow
from lpo_ray.records import Prompt
from lpo_ray.tasks.sources.columns import shown
from lpo_ray.tasks.sources.prompt_file import Hashes, PromptFile, Reading
from lpo_ray.tasks.sources.source import epoch_order

logger = logging.getLogger(__name__)


class Position(NamedTuple):
    """Place in the data of a number of the run.

    Example: ``Position(epoch=2, step=17, row=4101)``
    """

    epoch: int
    step: int
    """prompts of this epoch before it"""
    row: int
    """row of the file, counted from 1; for files of lines, the line"""


class DatasetSource:
    """Rows of one data set for training and of another for evaluation.

    Rows whose prompt cannot be read or leaves no room for a response, or whose answer the verifier cannot read, are
    left out, and counted in the log. A training prompt that is also held out is an error: the evaluation would measure
    memory. One that differs in case and white space only, and one that is in the training data twice, is a warning.
    """

    def __init__(
        self,
        *,
        path: str | None,
        heldout_path: str | None,
        reading: Reading,
        verifier: str,
        seed: int,
        num_train: int | None,
    ) -> None:
        """``path``: None when nothing is trained. ``num_train``: how many of its rows are read, None for all. Raises
        DataError naming file and row.
        """
        self._seed, self._verifier = seed, verifier
        self._train_file = PromptFile(path, reading, num_train) if path else None
        self.heldout_file = PromptFile(heldout_path, reading) if heldout_path else None
        overlapping = self._train_file and self.heldout_file
        self.num_alike = self._check_overlap(overlapping) if overlapping else 0
        """held-out prompts that are a training prompt but for case and white space"""
        if self._train_file and (duplicates := self._train_file.num_duplicates):
            logger.warning("%s: %d prompts repeat one before them, and are trained as often", path, duplicates)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt of both files."""
        return max((file.longest for file in (self._train_file, self.heldout_file) if file is not None), default=0)

    @property
    def train_file(self) -> PromptFile:
        """DataError when there is none."""
        if self._train_file is None:
            raise DataError("task.path is null, so there are no training prompts; expected a file of them")
        return self._train_file

    def position(self, index: int) -> Position:
        """Find training prompt ``index`` of the run in the data: an endless sequence of epochs, each in an order of its
        own.
        """
        epoch, step = divmod(index, len(self.train_file))
        return Position(epoch, step, self.train_file.row(self._place(epoch, step)))

    def train(self, index: int) -> Prompt:
        """Read training prompt ``index`` of the run from the file and encode it. DataError if the file was changed;
        UnusableRow when its prompt, or the verifier its answer, could not be read in the pass over the data.
        """
        epoch, step = divmod(index, len(self.train_file))
        place = self._place(epoch, step)
        return self._prompt(f"train-{index:08d}-row-{self.train_file.row(place)}", self.train_file, place)

    def heldout(self, count: int) -> Sequence[Prompt]:
        """Read the first ``count`` prompts of the held-out file whose answers can be used. Fewer only where it has too
        many others; DataError when it has fewer rows.
        """
        file = self.heldout_file
        there, faults = (0, {}) if file is None else (len(file), file.faults)
        if count > there:
            raise DataError(
                f"evaluation.num_prompts is {count}, but there are {there} held-out prompts; lower it, or "
                "point task.heldout_path to a larger file"
            )
        usable = [number for number in range(there) if number not in faults][:count]
        return [self._prompt(f"heldout-{number:08d}", file, number) for number in usable if file is not None]

    def _place(self, epoch: int, step: int) -> int:
        return int(epoch_order(self._seed, epoch, len(self.train_file))[step])

    def _prompt(self, prompt_id: str, file: PromptFile, place: int) -> Prompt:
        if (fault := file.fault(place)) is not None:
            raise UnusableRow(prompt_id, f"row {file.row(place)}: {fault}")
        example = file.example(place)
        token_ids = file.encoded(example)
        return Prompt(prompt_id, token_ids, example.answer, self._verifier, example.row, example.raw_answer)

    def _check_overlap(self, heldout: PromptFile) -> int:
        """Count held-out prompts that are alike to one of training. DataError when some are equal."""
        train = self.train_file
        equal = _shared(heldout.found.exact, train.found.exact, heldout, train)
        alike = _shared(heldout.found.folded, train.found.folded, heldout, train)
        if len(equal):
            text = shown(heldout.example(int(equal[0])).text)
            raise DataError(
                f"{len(equal)} prompts of {heldout.path} are also in {train.path}, first row "
                f"{heldout.row(int(equal[0]))}, {text}; held-out and training prompts must not overlap: remove them "
                "from one of the files"
            )
        if len(alike):
            logger.warning(
                "%s: %d prompts differ from one of %s in case and white space only, first row %d: the evaluation may "
                "measure memory",
                heldout.path, len(alike), train.path, heldout.row(int(alike[0])),
            )  # fmt: skip
        return len(alike)


def _shared(mine: Hashes, others: Hashes, file: PromptFile, other: PromptFile) -> np.ndarray:
    """List the places in ``file`` whose prompt is also in ``other``."""
    return np.flatnonzero(np.isin(mine[file.kept], others[other.kept[other.readable]]) & file.readable)
