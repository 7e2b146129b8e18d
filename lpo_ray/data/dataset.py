"""Prompts from a file: .jsonl, .parquet, or a Hugging Face dataset; one row is one prompt with its answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lpo_ray.data.source import PromptEncoder, epoch_order
from lpo_ray.errors import DataError
from lpo_ray.records import Prompt

logger = logging.getLogger(__name__)
Row = Mapping[str, object]
SAFE_DATASETS = 4
"""major version of the datasets library from which on it runs no code of a data set"""


class DatasetSource:
    """Rows of one file for training and of another for evaluation.

    Rows whose prompt leaves no room for a response are left out, and counted in the log. A training row that is also
    held out is an error: the evaluation would measure memory.
    """

    def __init__(
        self,
        *,
        path: str,
        heldout_path: str | None,
        columns: tuple[str, str],
        verifier: str,
        encoder: PromptEncoder,
        seed: int,
        num_train: int | None,
    ) -> None:
        """``columns``: names of the prompt and the answer column. Raises DataError naming file and row."""
        rows = _texts(path, columns)
        self._rows = rows[:num_train] if num_train else rows
        self._heldout_rows = _texts(heldout_path, columns) if heldout_path else []
        shared = {text for text, _ in self._rows} & {text for text, _ in self._heldout_rows}
        if shared:
            raise DataError(
                f"{len(shared)} prompts of {heldout_path} are also in {path}, first {min(shared)[:80]!r}; held-out and "
                "training prompts must not overlap: remove them from one of the files"
            )
        self._seed, self._verifier = seed, verifier
        self._train = self._encode(self._rows, encoder, path)
        self._heldout = self._encode(self._heldout_rows, encoder, heldout_path or "")

    def train(self, index: int) -> Prompt:
        """Row ``index`` of the endless sequence of epochs, each in an order of its own."""
        epoch, position = divmod(index, len(self._train))
        row = int(epoch_order(self._seed, epoch, len(self._train))[position])
        source = self._train[row]
        return Prompt(f"train-{index:08d}-row-{row}", source.token_ids, source.answer, source.verifier)

    def heldout(self, count: int) -> Sequence[Prompt]:
        """The first ``count`` rows of the held-out file; DataError when it has fewer."""
        if count > len(self._heldout):
            raise DataError(
                f"evaluation.num_prompts is {count}, but there are {len(self._heldout)} held-out prompts; lower it, or "
                "point task.heldout_path to a larger file"
            )
        return self._heldout[:count]

    def _encode(self, rows: list[tuple[str, str]], encoder: PromptEncoder, path: str) -> list[Prompt]:
        encoded = [
            Prompt(f"heldout-{number:08d}", encoder.encode(text), answer, self._verifier)
            for number, (text, answer) in enumerate(rows)
        ]
        kept = [prompt for prompt in encoded if len(prompt.token_ids) <= encoder.max_tokens]
        if rows and not kept:
            raise DataError(
                f"all {len(rows)} prompts of {path} are longer than {encoder.max_tokens} tokens, the model's context "
                "minus sampling.max_tokens; lower sampling.max_tokens or take a model with a longer context"
            )
        if len(kept) < len(rows):
            logger.warning("%s: left out %d prompts over %d tokens", path, len(rows) - len(kept), encoder.max_tokens)
        return kept


def _texts(path: str, columns: tuple[str, str]) -> list[tuple[str, str]]:
    texts = [_text(row, columns, f"{path}, row {number}") for number, row in enumerate(_rows(path), start=1)]
    if not texts:
        raise DataError(f"dataset {path} has no rows; expected at least one with columns {' and '.join(columns)}")
    return texts


def _text(row: Row, columns: tuple[str, str], where: str) -> tuple[str, str]:
    missing = [column for column in columns if row.get(column) is None]
    if missing:
        raise DataError(
            f"{where} has no {' and no '.join(missing)}; its columns are {', '.join(map(str, row))}. Set "
            "task.prompt_column and task.answer_column"
        )
    prompt, answer = (row[column] for column in columns)
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: {columns[0]} is {prompt!r}; expected a text that is not empty")
    return prompt, answer if isinstance(answer, str) else json.dumps(answer)


def _rows(path: str) -> Iterator[Row]:
    file = Path(path)
    if file.suffix == ".jsonl":
        yield from _jsonl(file)
    elif file.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            yield from pq.read_table(file).to_pylist()
        except (OSError, ValueError) as error:
            raise DataError(f"dataset {path} cannot be read as parquet: {error}") from error
    else:
        yield from _hub(path)


def _jsonl(file: Path) -> Iterator[Row]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"dataset {file} cannot be read: {error}; expected UTF-8, one JSON object a line") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}, row {number} is not JSON ({error}): {line[:80]!r}") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, row {number} is {line[:80]!r}; expected a JSON object")
        yield row


def _hub(path: str) -> Iterator[Row]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            f"task.path is {path!r}: neither .jsonl nor .parquet, and a hub's needs `pip install datasets`"
        ) from error
    if int(datasets.__version__.partition(".")[0]) < SAFE_DATASETS:
        raise DataError(
            f"task.path is {path!r}, and datasets {datasets.__version__} would run a script that a data set brings "
            f"along; expected version {SAFE_DATASETS} or later: pip install --upgrade datasets"
        )
    try:
        local = Path(path).is_dir()
        loaded = datasets.load_from_disk(path) if local else datasets.load_dataset(path, split="train")
    except (OSError, ValueError, ConnectionError) as error:
        raise DataError(f"dataset {path!r} could not be loaded: {error}") from error
    yield from loaded
