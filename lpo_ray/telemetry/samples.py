"""Samples of a step, such as samples/step_000012.parquet: one row for each response. They suffice to trace any answer,
to recompute the step's loss, and to recompute the whole step (``read_step``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lpo_ray.common.files import make_folder, replacing
from lpo_ray.records import (
    AfterGroup,
    AnchorGroup,
    FloatArray,
    IntArray,
    Key,
    Prompt,
    PromptGroup,
    Response,
    ScoredGroup,
    StepReport,
    TargetGroup,
)


def samples_path(run_dir: Path, step: int) -> Path:
    """Return the path of the samples of ``step``."""
    return run_dir / "samples" / f"step_{step:06d}.parquet"


def write_samples(
    path: Path,
    targets: Sequence[TargetGroup],
    report: StepReport,
    *,
    step: int,
    learning_rate: float,
    divergence: str,
    after: Mapping[Key, AfterGroup],
    decode: Callable[[IntArray], str],
) -> None:
    """Write the rows, whole or not at all. ``after`` has the groups that were measured after the step.

    The logged loss is the mean over (prompt_id, attempt) of ``project(divergence, s, log_target).loss`` with
    s = log_ratio - (1 - tempering) anchor; the differentiated one is the sum of ``surrogate`` over an update's rows by
    its number of prompts.
    """
    projected = {group.key: group for group in report.groups}
    rows: list[dict[str, object]] = []
    for target in targets:
        group = target.group
        found, seen, details = projected[group.key], after.get(group.key), target.scored.details
        prompt, row = _printable(decode(group.prompt.token_ids)), _printable(json.dumps(group.prompt.row, default=str))
        for index, response in enumerate(group.responses):
            rows.append(
                {
                    "step": step,
                    "update": found.update,
                    "learning_rate": learning_rate,
                    "prompt_id": group.prompt.prompt_id,
                    "attempt": group.attempt,
                    "response_index": index,
                    "prompt": prompt,
                    "response": _printable(decode(response.token_ids)),
                    "answer": group.prompt.answer,
                    "verifier": group.prompt.verifier,
                    "row": row,
                    "reward": float(target.scored.rewards[index]),
                    "shaping": float(target.scored.shaped[index] - target.scored.rewards[index]),
                    "detail": _printable(details[index]) if details else None,
                    "divergence": divergence,
                    "temperature": target.temperature,
                    "tempering": target.tempering,
                    "log_target": float(target.log_target[index]),
                    "target": float(np.exp(target.log_target[index])),
                    "anchor": float(target.anchor.log_ratio[index]),
                    "drift": float(target.anchor.drift[index]),
                    "mismatch_kl": float(target.anchor.mismatch_kl[index]),
                    "log_ratio": float(found.log_ratio[index]),
                    "after": None if seen is None else float(seen.log_ratio[index]),
                    "token_log_ratio": None if seen is None else seen.token_log_ratio[index],
                    "coefficient": float(found.coefficient[index]),
                    "surrogate": float(found.surrogate[index]),
                    "entropy": float(found.entropy[index]),
                    "prompt_token_ids": group.prompt.token_ids,
                    "token_ids": response.token_ids,
                    "behaviour_logprobs": response.behaviour_logprobs,
                    "versions": response.versions,
                    "finish_reason": response.finish_reason,
                }
            )
    make_folder(path.parent)
    with replacing(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial, compression="zstd")


@dataclass(frozen=True, slots=True, eq=False)
class RecordedStep:
    """Input of a step, bit for bit and in its order."""

    targets: list[TargetGroup]
    updates: int
    learning_rate: float


def read_step(path: Path) -> RecordedStep:
    """Read the step that was written to ``path``."""
    rows = pq.read_table(path).to_pylist()
    groups: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["prompt_id"], row["attempt"]), []).append(row)
    updates = 1 + max(row["update"] for row in rows)
    return RecordedStep([_target(found) for found in groups.values()], updates, rows[0]["learning_rate"])


def _target(rows: Sequence[dict]) -> TargetGroup:
    def floats(name: str) -> FloatArray:
        return np.array([row[name] for row in rows], dtype=np.float32)

    first = rows[0]
    token_ids = np.array(first["prompt_token_ids"], dtype=np.int64)
    prompt = Prompt(first["prompt_id"], token_ids, first["answer"], first["verifier"], json.loads(first["row"]))
    responses = tuple(
        Response(
            np.array(row["token_ids"], dtype=np.int64),
            np.array(row["behaviour_logprobs"], dtype=np.float32),
            np.array(row["versions"], dtype=np.int64),
            row["finish_reason"],
        )
        for row in rows
    )
    shaping = floats("shaping") if "shaping" in first else np.zeros(0, np.float32)  # none in samples of before
    scored = ScoredGroup(PromptGroup(prompt, first["attempt"], responses), floats("reward"), shaping=shaping)
    anchor = AnchorGroup(floats("anchor"), floats("drift"), floats("mismatch_kl"))
    return TargetGroup(scored, floats("log_target"), anchor, first["temperature"], first["tempering"])


def _printable(text: str) -> str:
    """Replace lone surrogates, which a model may produce and UTF-8 cannot hold."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
