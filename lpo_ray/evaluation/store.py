"""Store of results, ``evaluation.jsonl``: each prompt as soon as it is there, so that a second call continues where the
first was killed.

The first line says what was evaluated and how; every other line is a PromptResult. A line is written at once and
synced; what a kill or a full disk left of the last one is dropped at the next opening.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any

from lpo_ray.common.files import explained, make_folder, sync
from lpo_ray.common.folder_lock import FolderLock, Held
from lpo_ray.errors import ConfigError, RunBusy
from lpo_ray.evaluation.results import PromptResult, digest_of
from lpo_ray.records import Prompt

logger = logging.getLogger(__name__)
Identity = Mapping[str, Any]
"""what decides the responses and their rewards beside the prompts, as plain JSON values: model, sampling, verifier"""
NAME = "evaluation.jsonl"
FIRST_DAY = "2024-07-26"
"""that prompts were told by versions which wrote no day"""


def begun_on(folder: Path) -> str | None:
    """Read the day on which the evaluation in ``folder`` was begun; None: there is none."""
    path = folder / NAME
    if not path.is_file():
        return None
    with path.open("rb") as file, contextlib.suppress(ConfigError):  # opening the store says what is damaged
        return str(_parsed(file.readline(), path, 1).get("begun", FIRST_DAY))
    return None


class ResultStore:
    """Store of results in one folder, held by one process (a context manager).

    Opening it raises RunBusy when another process has it, and ConfigError when it holds results of something else.
    """

    def __init__(self, folder: Path, identity: Identity, prompts: Sequence[Prompt], *, fresh: bool = False) -> None:
        """``identity``: see Identity; ``fresh``: what is there is thrown away. More prompts than last time are fine."""
        self._path = folder / NAME
        make_folder(folder)
        self._held = contextlib.ExitStack()
        try:
            self._held.enter_context(FolderLock(folder / f".{NAME}.lock", note=logger.warning))
        except Held as held:
            raise RunBusy(
                f"{folder} is being written by another evaluation: {held}. Expected one at a time: wait for it, or "
                "give another --out"
            ) from held
        try:
            self._prompts = {prompt.prompt_id: digest_of(prompt) for prompt in prompts}
            if fresh:
                self._path.unlink(missing_ok=True)
            self._results = {
                result.prompt_id: result for result in self._opened(json.loads(json.dumps(dict(identity))))
            }
            self._file = self._path.open("ab")
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._held.close()

    @property
    def results(self) -> list[PromptResult]:
        """Results that are there, in the order of the prompts."""
        return [self._results[prompt_id] for prompt_id in self._prompts if prompt_id in self._results]

    def is_done(self, prompt_id: str) -> bool:
        """Whether the prompt has a result."""
        return prompt_id in self._results

    def append(self, result: PromptResult) -> None:
        """Keep the result of one prompt: when this returns it is on disk."""
        with explained(self._path):
            self._file.write(_line(result.to_json()))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._results[result.prompt_id] = result

    def _opened(self, identity: Identity) -> list[PromptResult]:
        """Read the file. It is begun when it is not there, or was killed while its first line was written."""
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            with explained(self._path):
                self._path.write_bytes(_line({"evaluation": identity, "begun": date.today().isoformat()}))
                sync(self._path)
            sync(self._path.parent)
            return []
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        first, *rest = whole.splitlines()
        self._check(_parsed(first, self._path, 1).get("evaluation"), identity)
        return [self._result(line, number) for number, line in enumerate(rest, start=2)]

    def _result(self, line: bytes, number: int) -> PromptResult:
        try:
            result = PromptResult.from_json(_parsed(line, self._path, number))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self._path, number, error) from error
        wanted = self._prompts.get(result.prompt_id)
        if wanted is not None and wanted != result.prompt:
            raise _another(self._path, f"its {result.prompt_id} is another prompt, or has another answer or verifier")
        return result

    def _check(self, stored: object, identity: Identity) -> None:
        if stored == identity:
            return
        if not isinstance(stored, Mapping):
            raise _damaged(self._path, 1, ValueError("no 'evaluation'"))
        names = [name for name in {**identity, **stored} if stored.get(name) != identity.get(name)]
        differences = "; ".join(f"its {name} is {stored.get(name)}, now {identity.get(name)}" for name in names)
        raise _another(self._path, differences)


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()


def _parsed(line: bytes, path: Path, number: int) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise _damaged(path, number, error) from error
    if not isinstance(value, Mapping):
        raise _damaged(path, number, ValueError(f"a {type(value).__name__}"))
    return value


def _damaged(path: Path, number: int, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path}, line {number} is damaged ({type(error).__name__}: {error}); expected one JSON object a line, as "
        "it was written. Remove the line, or start again with --fresh"
    )


def _another(path: Path, differences: str) -> ConfigError:
    return ConfigError(
        f"{path} holds results of another evaluation: {differences}. Expected the same, so that results can be put "
        "together: give another --out, or throw these away with --fresh"
    )
