"""Samples of a step, such as samples/step_000012.parquet: one row for each response, or for each segment of one
(``segment_columns``). They suffice to trace any answer, to recompute the step's loss, and to recompute the whole step
(``read_step``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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
    ProjectedGroup,
    Prompt,
    PromptGroup,
    Response,
    ScoredGroup,
    StepReport,
    TargetGroup,
    joined,
)
from lpo_ray.telemetry.segment_columns import SCHEMA, by_response, by_segment, conversation_of

CHUNK_TOKENS = 2**22
"""tokens of the responses in a row group of the file"""


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
    """Write the rows, whole or not at all: some million tokens at a time, so that few are in memory twice. ``after``
    has the groups that were measured after the step.

    The logged loss is the mean over (prompt_id, attempt) of ``project(divergence, s, log_target).loss`` with
    s = log_ratio - (1 - tempering) anchor; the differentiated one is the sum of ``surrogate`` over an update's
    responses by its number of prompts.
    """
    fixed = {"step": step, "learning_rate": learning_rate, "divergence": divergence}
    projected = {group.key: group for group in report.groups}
    schema = _schema(is_measured=bool(after), has_details=any(target.scored.details for target in targets))
    if segmented := any(response.conversation for target in targets for response in target.group.responses):
        schema = pa.schema([*schema, *(pa.field(name, kind) for name, kind in SCHEMA.items())])
    make_folder(path.parent)
    with replacing(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for chunk in _chunks(targets):
            groups = [_columns(t, projected[t.group.key], after.get(t.group.key), fixed, decode) for t in chunk]
            if segmented:
                groups = [by_segment(t.group, found, decode) for t, found in zip(chunk, groups, strict=True)]
            columns = [_column(field.type, [group[field.name] for group in groups]) for field in schema]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _schema(*, is_measured: bool, has_details: bool) -> pa.Schema:
    """Return the columns of the file. Those of which nothing is known in this step hold nulls."""
    tokens = pa.list_(pa.int64())
    return pa.schema(
        {
            "step": pa.int64(), "update": pa.int64(), "learning_rate": pa.float64(), "prompt_id": pa.string(),
            "attempt": pa.int64(), "response_index": pa.int64(), "prompt": pa.string(), "response": pa.string(),
            "answer": pa.string(), "verifier": pa.string(), "row": pa.string(), "reward": pa.float64(),
            "shaping": pa.float64(), "detail": pa.string() if has_details else pa.null(), "divergence": pa.string(),
            "temperature": pa.float64(), "tempering": pa.float64(), "log_target": pa.float64(),
            "target": pa.float64(), "anchor": pa.float64(), "drift": pa.float64(), "mismatch_kl": pa.float64(),
            "log_ratio": pa.float64(), "after": pa.float64() if is_measured else pa.null(),
            "token_log_ratio": pa.list_(pa.float32()) if is_measured else pa.null(), "coefficient": pa.float64(),
            "surrogate": pa.float64(), "entropy": pa.float64(), "prompt_token_ids": tokens, "token_ids": tokens,
            "behaviour_logprobs": pa.list_(pa.float32()), "versions": tokens, "finish_reason": pa.string(),
        }
    )  # fmt: skip


def _chunks(targets: Sequence[TargetGroup]) -> Iterator[list[TargetGroup]]:
    """Cut the groups into runs of about CHUNK_TOKENS tokens of responses, one group at least."""
    chunk: list[TargetGroup] = []
    tokens = 0
    for target in targets:
        size = target.group.num_tokens + sum(response.num_others for response in target.group.responses)
        if chunk and tokens + size > CHUNK_TOKENS:
            yield chunk
            chunk, tokens = [], 0
        chunk.append(target)
        tokens += size
    yield chunk


def _columns(
    target: TargetGroup,
    found: ProjectedGroup,
    seen: AfterGroup | None,
    fixed: Mapping[str, object],
    decode: Callable[[IntArray], str],
) -> Mapping[str, Iterable[object]]:
    """Return the columns of a group, [K] each. ``fixed``: values of the step, the same for all."""
    group, scored, anchor = target.group, target.scored, target.anchor
    size, prompt = len(group.responses), group.prompt
    same = {
        **fixed,
        "update": found.update,
        "prompt_id": prompt.prompt_id,
        "attempt": group.attempt,
        "prompt": decode(prompt.token_ids),
        "answer": prompt.answer,
        "verifier": prompt.verifier,
        "row": json.dumps(prompt.row, default=str),
        "temperature": target.temperature,
        "tempering": target.tempering,
        "prompt_token_ids": prompt.token_ids,
    }
    return {
        **{name: [value] * size for name, value in same.items()},
        "response_index": range(size),
        "response": [decode(response.token_ids) for response in group.responses],
        "reward": scored.rewards,
        "shaping": scored.shaped - scored.rewards,
        "detail": scored.details or [None] * size,
        "log_target": target.log_target,
        "target": np.exp(target.log_target),
        "anchor": anchor.log_ratio,
        "drift": anchor.drift,
        "mismatch_kl": anchor.mismatch_kl,
        "log_ratio": found.log_ratio,
        "after": [None] * size if seen is None else seen.log_ratio,
        "token_log_ratio": [None] * size if seen is None else seen.token_log_ratio,
        "coefficient": found.coefficient,
        "surrogate": found.surrogate,
        "entropy": found.entropy,
        "token_ids": [response.token_ids for response in group.responses],
        "behaviour_logprobs": [response.behaviour_logprobs for response in group.responses],
        "versions": [response.versions for response in group.responses],
        "finish_reason": [response.finish_reason for response in group.responses],
    }


def _column(kind: pa.DataType, parts: Sequence[Iterable[object]]) -> pa.Array:
    """Join the groups' parts of one column. Arrays of tokens are joined as arrays: they are never Python's numbers."""
    values = [value for part in parts for value in part]
    if pa.types.is_string(kind):
        return pa.array([None if value is None else _printable(cast("str", value)) for value in values], kind)
    if not pa.types.is_list(kind) or pa.types.is_string(kind.value_type):
        return pa.array(values, kind)
    arrays = [np.asarray(value) for value in values if value is not None]
    lengths = [0 if value is None else len(cast("np.ndarray", value)) for value in values]
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
    mask = pa.array([value is None for value in values])
    return pa.ListArray.from_arrays(
        offsets, pa.array(joined(arrays) if arrays else [], kind.value_type), kind, mask=mask
    )


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


def _target(rows: Sequence[Mapping[str, Any]]) -> TargetGroup:
    def floats(name: str) -> FloatArray:
        return np.array([row[name] for row in rows], dtype=np.float32)

    first = rows[0]
    token_ids = np.array(first["prompt_token_ids"], dtype=np.int64)
    prompt = Prompt(first["prompt_id"], token_ids, first["answer"], first["verifier"], json.loads(first["row"]))
    of_responses = by_response(rows)
    responses = tuple(map(_response, of_responses))
    rows = [found[0] for found in of_responses]
    shaping = floats("shaping") if "shaping" in first else np.zeros(0, np.float32)  # none in samples of before
    scored = ScoredGroup(PromptGroup(prompt, first["attempt"], responses), floats("reward"), shaping=shaping)
    anchor = AnchorGroup(floats("anchor"), floats("drift"), floats("mismatch_kl"))
    return TargetGroup(scored, floats("log_target"), anchor, first["temperature"], first["tempering"])


def _response(rows: Sequence[Mapping[str, Any]]) -> Response:
    def tokens(name: str, kind: type[np.generic]) -> np.ndarray:
        return np.array([value for row in rows for value in row[name]], dtype=kind)

    return Response(
        tokens("token_ids", np.int64),
        tokens("behaviour_logprobs", np.float32),
        tokens("versions", np.int64),
        rows[0]["finish_reason"],
        conversation_of(rows),
    )


def _printable(text: str) -> str:
    """Replace lone surrogates, which a model may produce and UTF-8 cannot hold."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
