"""Folders of runs for the viewer's tests, as the system writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lpo_ray.common.files import write_json
from lpo_ray.records import Conversation, IntArray, Segment, TargetGroup
from lpo_ray.tasks.base_policy import character_tokenizer
from lpo_ray.telemetry.log import LogFile, LogLine
from lpo_ray.telemetry.samples import samples_path, write_samples
from lpo_ray.telemetry.sinks import MetricsLog
from lpo_ray.telemetry.status import StatusFile
from tests.support.builders import make_target
from tests.support.segments import with_group
from tests.support.telemetry import report_of


def scored(number: int, rewards: Sequence[float], *, version: int = 0, tokens: int = 4) -> TargetGroup:
    """A group with these rewards, sampled by weights of one version."""
    target = make_target(number, (tokens,) * len(rewards), version=version)
    return replace(target, scored=replace(target.scored, rewards=np.array(rewards, dtype=np.float32)))


def write_step(
    folder: Path, step: int, targets: Sequence[TargetGroup], decode: Callable[[IntArray], str] = str
) -> Path:
    path = samples_path(folder, step)
    write_samples(
        path,
        targets,
        report_of(list(targets)),
        step=step,
        learning_rate=0.1,
        divergence="forward_kl",
        after={},
        decode=decode,
    )
    MetricsLog(folder / "metrics.jsonl").append({"step": step, "reward": step / 10, "token_entropy": 1.0 / step})
    return path


def with_columns(path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Put columns into a file in place of its own."""
    table = pq.read_table(path)
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)


def make_run(folder: Path, *, steps: int = 2, name: str = "tried") -> Path:
    """A finished run of groups of two: in each step one whose rewards are mixed, one without a right response, and one
    that is a step old.
    """
    folder.mkdir(parents=True)
    for step in range(1, steps + 1):
        now = step - 1
        targets = [
            scored(10 * step, (1.0, 0.0), version=now),
            scored(10 * step + 1, (0.0, 0.0), version=now),
            scored(10 * step + 2, (1.0, 1.0), version=now - 1),
        ]
        write_step(folder, step, targets)
    StatusFile(folder, name, steps, step=steps, ended=True).write()
    write_json(folder / "evaluations.json", {"0": {"pass@1": 0.25, "ci95": {"pass@1": [0.125, 0.5]}}})
    (folder / "config.yaml").write_text("task: {name: countdown}\nmodel: {path: null}\n")
    log = LogFile(folder / "log.jsonl")
    log.append(LogLine(1.7e9, "info", "driver", "", steps, "the end"))
    log.close()
    return folder


def called(folder: Path, *said: tuple[str, str], template: str = "plain", parser: str = "auto") -> Path:
    """A run of one conversation: what the policy said in each turn, and what a tool said behind it."""
    folder.mkdir(parents=True)
    tokenizer = character_tokenizer()
    tokenizer.save(folder / "model")
    ids = [[tokenizer.encode(text) for text in pair] for pair in said]
    turns = [len(turn) for turn, _ in ids]
    parts = [np.repeat([True, False], (len(turn), len(answer))) for turn, answer in ids]
    parts[-1] = parts[-1][: turns[-1]]
    mask = np.concatenate(parts)
    token_ids = np.concatenate([part for pair in ids for part in pair])[: len(mask)]
    conversation = Conversation((Segment(token_ids, mask),), tuple(turns), ("tool",) * (len(said) - 1))
    target = make_target(0, (sum(turns),))
    response = replace(target.group.responses[0], token_ids=token_ids[mask], conversation=conversation)
    target = with_group(target, replace(target.group, responses=(response,)))
    write_step(folder, 1, [target], tokenizer.decode)
    task = f"task: {{name: countdown, template: {template}, tool_parser: {parser}}}"
    (folder / "config.yaml").write_text(f"{task}\nmodel: {{path: {folder / 'model'}}}\n")
    return folder
