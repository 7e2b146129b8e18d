"""A data set as numbered prompts: read once from end to end, then any prompt by its number.

The pass checks every row, counts its tokens and hashes its text, so that what is left out and the order of the data are
known before the run starts. It keeps 28 bytes a row and where each row stands; texts and token ids are read and encoded
again when a prompt is issued. Measured on two cores: 100,000 rows of 102 tokens, a .jsonl of 39 MB, take 34 s of CPU
(the tokenizer has 30 of them) and 28 MiB; reading and encoding one again takes 0.5 ms.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import numpy as np
import numpy.typing as npt

from lpo_ray.errors import DataError
from lpo_ray.records import IntArray
from lpo_ray.tasks.sources.columns import Check, Example, Row, anything, recognised
from lpo_ray.tasks.sources.layouts import Recast
from lpo_ray.tasks.sources.rows import open_rows
from lpo_ray.tasks.sources.source import PromptEncoder, Rendered

logger = logging.getLogger(__name__)
BATCH = 512
"""prompts that are encoded at once"""
NAMED = 3
"""rows that a message names"""
PROGRESS_SECONDS = 10.0
"""between two lines about a pass that takes long"""
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Reading:
    """Settings by which rows become prompts."""

    encoder: PromptEncoder
    prompt_column: str | None
    """None: recognised by its name; answer_column likewise"""
    answer_column: str | None
    needs_answer: bool
    """whether a row without one cannot be used"""
    ignore_images: bool
    """whether rows with images are taken without them; otherwise they are an error"""
    check: Check = anything
    """reads an answer as the verifier does"""


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """Findings of one pass over a file, a number for each of its N rows."""

    lengths: npt.NDArray[np.int32]
    """[N] tokens of the prompt; a lower bound of one that is far too long; 0 of one that cannot be read"""
    exact: Hashes
    """[N] of the prompt's text"""
    folded: Hashes
    """[N] of the same without its case, and with each stretch of white space as one space"""
    num_with_images: int
    faults: Mapping[int, str]
    """row, counted from 0 -> why its prompt or answer cannot be used"""


class PromptFile:
    """Prompts of one data set that leave room for a response, in the order of its rows. Those that cannot be read, and
    those whose answers cannot, have their place among them.
    """

    def __init__(self, path: str, reading: Reading, limit: int | None = None) -> None:
        """Reads the first ``limit`` rows (None: all). DataError names file, row and column, or says that no row, or
        none that is short enough, was there.
        """
        self.path, self._encoder = path, reading.encoder
        self._rows = Recast(open_rows(path))
        rows = islice(self._rows, limit)
        first = list(islice(rows, BATCH))
        if not first:
            raise DataError(f"dataset {path} has no rows; expected at least one with a prompt and an answer")
        self._columns = recognised(
            first, reading.prompt_column, reading.answer_column, self._where(0), needs_answer=reading.needs_answer,
            check=reading.check,
        )  # fmt: skip
        self.found = self._pass(first, rows, reading)
        self.kept: IntArray = np.flatnonzero(self.found.lengths <= self._encoder.max_tokens).astype(np.int64)
        """[M] rows that are short enough, counted from 0. What cannot be used has its place among them, so the order of
        the data does not depend on what a verifier can read
        """
        self._report(reading)

    def __len__(self) -> int:
        """Count the prompts that are short enough, M."""
        return len(self.kept)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt that is short enough."""
        return int(self.found.lengths[self.kept].max())

    def row(self, position: int) -> int:
        """Return what messages call the row of prompt ``position`` (0 to M - 1): counted from 1; for files of lines,
        the line.
        """
        return self._rows.number(int(self.kept[position]))

    def example(self, position: int) -> Example:
        """Read prompt ``position`` (0 to M - 1), which ``fault`` says nothing against, from the file again."""
        index = int(self.kept[position])
        return self._columns.read(self._rows[index], self._where(index))

    def encoded(self, example: Example) -> IntArray:
        """Encode an example: [T] token ids."""
        return self._encoder.encode(example.prompt)

    def fault(self, position: int) -> str | None:
        """Say why prompt ``position`` (0 to M - 1) cannot be used; None when it can."""
        return self.found.faults.get(int(self.kept[position]))

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """[M] whether the prompt, whatever its answer, can be read."""
        return self.found.lengths[self.kept] > 0

    @property
    def num_duplicates(self) -> int:
        """Prompts that are, to the letter, one before them."""
        hashes = self.found.exact[self.kept[self.readable]]
        return len(hashes) - len(np.unique(hashes))

    @property
    def faults(self) -> dict[int, str]:
        """Why prompts that are short enough cannot be used: their position (0 to M - 1) -> column and reason."""
        return {position: fault for position in range(len(self)) if (fault := self.fault(position)) is not None}

    def _where(self, index: int) -> str:
        return self._rows.where(index)

    def _pass(self, first: list[Row], rest: Iterable[Row], reading: Reading) -> Pass:
        lengths: list[npt.NDArray[np.int32]] = []
        hashes: list[npt.NDArray[np.uint64]] = []
        faults: dict[int, str] = {}
        done = num_with_images = 0
        started = said = time.monotonic()
        for batch in _batches(first, rest):
            found = dict(enumerate(batch, start=done))
            examples = self._examples(found, faults)
            num_with_images += self._images(examples, reading)
            counts = self._lengths(examples, faults)
            lengths.append(np.array([counts.get(index, 0) for index in found], dtype=np.int32))
            texts = [examples[index].text if index in examples else "" for index in found]
            hashes.append(np.array([_hashes(text) for text in texts], dtype=np.uint64))
            done += len(batch)
            if (now := time.monotonic()) - said > PROGRESS_SECONDS:
                said = now  # a warning, as the driver shows nothing less
                logger.warning("%s: %s rows read in %.0f s, continuing", self.path, f"{done:,}", now - started)
        exact, folded = np.concatenate(hashes).T
        return Pass(np.concatenate(lengths), exact.copy(), folded.copy(), num_with_images, faults)

    def _examples(self, rows: Mapping[int, Row], faults: dict[int, str]) -> dict[int, Example]:
        """Read rows by their number; those that cannot be read, and answers that cannot, are added to ``faults``."""
        found: dict[int, Example] = {}
        for index, row in rows.items():
            where = self._where(index)
            try:
                found[index] = example = self._columns.read(row, where)
            except DataError as error:
                faults[index] = str(error).removeprefix(where).lstrip(": ")
                continue
            if (fault := self._columns.fault(example)) is not None:
                faults[index] = fault
        return found

    def _lengths(self, examples: Mapping[int, Example], faults: dict[int, str]) -> dict[int, int]:
        """Count the tokens of prompts by their row's number. Those that the template refuses, and those without a
        token, are added to ``faults``.
        """
        rendered: dict[int, Rendered] = {}
        for index, example in examples.items():
            try:
                rendered[index] = self._encoder.render(example.prompt)
            except DataError as error:
                faults[index] = f"{self._columns.prompt}: {error}"
        counts = dict(zip(rendered, self._encoder.count_many(list(rendered.values())), strict=True))
        for index in (index for index, count in counts.items() if not count):
            faults[index] = f"{self._columns.prompt} has no token in this model's vocabulary; expected a text"
        return counts

    def _images(self, examples: Mapping[int, Example], reading: Reading) -> int:
        """Count the rows that have images. DataError unless these are to be ignored."""
        places = [index for index, example in examples.items() if example.num_images]
        if places and not reading.ignore_images:
            raise DataError(
                f"{self._where(places[0])} has {examples[places[0]].num_images} images, and this version "
                "trains on text only: the policy would be asked about what it does not see. Describe them in words, or "
                "set task.options.images=ignore"
            )
        return len(places)

    def _report(self, reading: Reading) -> None:
        most, left_out = self._encoder.max_tokens, len(self.found.lengths) - len(self.kept)
        if not len(self.kept):
            raise DataError(
                f"all {left_out} prompts of {self.path} are longer than {most} tokens, the model's context (or "
                "rollout.max_model_len) minus sampling.max_tokens; lower sampling.max_tokens or take a model with a "
                "longer context"
            )
        if left_out:
            logger.warning("%s: left out %d prompts over %d tokens", self.path, left_out, most)
        if faults := self.faults:
            said = "; ".join(f"row {self.row(position)}: {fault}" for position, fault in islice(faults.items(), NAMED))
            if len(faults) == len(self.kept):
                raise DataError(
                    f"no row of {self.path} can be used: {said}. Set task.prompt_column, task.answer_column and "
                    "task.verifier to what belongs together"
                )
            logger.warning(
                "%s: %d of %d prompts are left out, as they or their answers cannot be used: %s%s",
                self.path, len(faults), len(self.kept), said, "; ..." if len(faults) > NAMED else "",
            )  # fmt: skip
        if self.found.num_with_images:
            logger.warning(
                "%s: %d prompts have images, which the policy does not see (task.options.images=ignore)",
                self.path, self.found.num_with_images,
            )  # fmt: skip
        if self._columns.answer is None:
            logger.warning("%s has no column of answers: the verifier is given an empty one", self.path)


def _batches(first: list[Row], rest: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rest)
    batch = first + list(islice(rows, BATCH - len(first)))
    while batch:
        yield batch
        batch = list(islice(rows, BATCH))


def _hashes(text: str) -> tuple[int, int]:
    return _hash(text), _hash(" ".join(text.casefold().split()))


def _hash(text: str) -> int:
    """Hash to 64 bits: two of a million different texts are equal once in 40 million data sets."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
