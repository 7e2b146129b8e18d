"""samples/step_000012.parquet: one row for each response, enough to recompute the step's loss and trace any answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lpo_ray.records import IntArray, StepReport, TargetGroup


def write_samples(
    path: Path,
    targets: Sequence[TargetGroup],
    report: StepReport,
    *,
    step: int,
    divergence: str,
    decode: Callable[[IntArray], str],
) -> None:
    """Write the rows, whole or not at all.

    The logged loss is the mean over (prompt_id, attempt) of ``project(divergence, log_ratio, log_target).loss``; the
    differentiated one is the sum of ``surrogate`` over an update's rows by its number of prompts.
    """
    projected = {(group.prompt_id, group.attempt): group for group in report.groups}
    rows: list[dict[str, object]] = []
    for target in targets:
        group = target.group
        found = projected[group.prompt.prompt_id, group.attempt]
        prompt = _printable(decode(group.prompt.token_ids))
        for index, response in enumerate(group.responses):
            rows.append(
                {
                    "step": step,
                    "update": found.update,
                    "prompt_id": group.prompt.prompt_id,
                    "attempt": group.attempt,
                    "response_index": index,
                    "prompt": prompt,
                    "response": _printable(decode(response.token_ids)),
                    "answer": group.prompt.answer,
                    "reward": float(target.scored.rewards[index]),
                    "divergence": divergence,
                    "temperature": target.temperature,
                    "log_target": float(target.log_target[index]),
                    "target": float(np.exp(target.log_target[index])),
                    "anchor": float(target.anchor[index]),
                    "log_ratio": float(found.log_ratio[index]),
                    "coefficient": float(found.coefficient[index]),
                    "surrogate": float(found.surrogate[index]),
                    "entropy": float(found.entropy[index]),
                    "token_ids": response.token_ids,
                    "behaviour_logprobs": response.behaviour_logprobs,
                    "versions": response.versions,
                    "finish_reason": response.finish_reason,
                }
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    pq.write_table(pa.Table.from_pylist(rows), partial, compression="zstd")
    os.replace(partial, path)


def _printable(text: str) -> str:
    """Lone surrogates cannot be written as UTF-8; a model may produce them."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
