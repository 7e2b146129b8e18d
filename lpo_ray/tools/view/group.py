"""One group: its prompt, and for each response what the step made of it; and the tokens of a response, or of all that
was said in a conversation.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lpo_ray.errors import DataError
from lpo_ray.records import IntArray
from lpo_ray.telemetry.samples import samples_path
from lpo_ray.tools.view.conversation import Mark, read_conversations
from lpo_ray.tools.view.run_folders import model_path
from lpo_ray.tools.view.sample_columns import Key, floats, read_columns, softmax
from lpo_ray.tools.view.token_text import CHARACTER_TOKENS, by_position, pieces

LONGEST = 20_000
"""characters of a text that is shown at once"""
MOST_TOKENS = 2_000
"""tokens that are sent at once"""
MOST_COMPARED = 20_000
"""tokens of a segment by whose text a tokenizer is known"""
NUMBERS = (
    "reward", "log_target", "target", "log_ratio", "anchor", "coefficient", "surrogate", "entropy", "drift",
    "mismatch_kl",
)  # fmt: skip
OF_GROUP = ("update", "learning_rate", "prompt", "answer", "row", "verifier", "divergence", "temperature", "tempering")


def read_group(folder: Path, step: int, key: Key) -> dict[str, object]:
    """Read everything about the group but its tokens; DataError when there is none."""
    columns = (*OF_GROUP, *NUMBERS, "response_index", "versions", "finish_reason")
    table = read_columns(samples_path(folder, step), columns, ("detail", "after", "token_log_ratio"), key)
    first = {name: _shortened(table[name][0].as_py()) for name in OF_GROUP}
    numbers = {name: floats(table, name) for name in (*NUMBERS, "after", "tempering")}
    offset = (1.0 - numbers["tempering"]) * numbers["anchor"]  # see records.TargetGroup.offset
    numbers["policy_before"] = softmax(numbers["log_ratio"] - offset)
    numbers["policy_after"] = softmax(numbers["after"] - offset)
    measured = ~np.isnan(numbers["after"]).all()
    conversations = read_conversations(folder, samples_path(folder, step), key)
    responses = []
    for row, index in enumerate(table["response_index"].to_pylist()):
        spans = _spans(table["versions"][row].as_py() or [])
        responses.append(
            {
                "index": index,
                **{name: float(values[row]) for name, values in numbers.items()},
                **({} if measured else {"after": None, "policy_after": None}),
                "tokens": sum(count for _, count in spans),
                "versions": spans,
                "staleness": step - 1 - min((version for version, _ in spans), default=0),
                "finish_reason": table["finish_reason"][row].as_py(),
                "detail": _shortened(table["detail"][row].as_py()),
                "conversation": None if index not in conversations else conversations[index].facts(),
            }
        )
    return {
        "step": step,
        "prompt_id": key[0],
        "attempt": key[1],
        **first,
        "scale": _scale(table["token_log_ratio"].to_pylist()),
        "responses": responses,
    }


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a response, not always all, in order. What was not recorded is None."""

    start: int
    total: int
    exact: bool
    """False: no tokenizer at hand, texts are cut by position"""
    texts: Sequence[str]
    ids: Sequence[int]
    log_ratio: Sequence[float | None] | None
    """log pi_after - log pi_b"""
    behaviour: Sequence[float | None]
    """log pi_b; None: the environment wrote the token"""
    versions: Sequence[int | None]
    marks: Sequence[Mark] = ()
    """what begins within a conversation, in order"""


def read_tokens(folder: Path, step: int, key: Key, index: int, start: int) -> Tokens:
    """Read at most MOST_TOKENS of the response with this index, from ``start``, those of the environment among them;
    DataError when there is none.
    """
    columns = ("response_index", "response", "token_ids", "behaviour_logprobs", "versions")
    path = samples_path(folder, step)
    table = read_columns(path, columns, ("token_log_ratio",), key, by_segment=True).to_pylist()
    rows = [row for row in table if row["response_index"] == index]
    if not rows:
        size = len({row["response_index"] for row in table})
        raise DataError(f"{path.name}: group {key[0]} (attempt {key[1]}) has no response {index}; it has {size}")
    conversation = read_conversations(folder, path, key).get(index)
    parts = [rows[0]["token_ids"]] if conversation is None else conversation.segment_ids
    token_ids = np.array(rows[0]["token_ids"]) if conversation is None else conversation.token_ids
    total = len(token_ids)
    start = min(max(start, 0), total)
    stop = min(start + MOST_TOKENS, total)
    tokenizer = _tokenizer_of(folder, np.array(parts[0], dtype=np.int64), rows[0]["response"])

    def show(ids: IntArray) -> str:
        return "" if tokenizer is None else tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    def values(name: str) -> list:
        found = [value for row in rows for value in row[name]]
        return found[start:stop] if conversation is None else conversation.spread(found, start, stop)

    return Tokens(
        start=start,
        total=total,
        exact=tokenizer is not None,
        texts=by_position("".join(row["response"] for row in rows), total, start, stop)
        if tokenizer is None
        else pieces(show, token_ids, start, stop),
        ids=token_ids[start:stop].tolist(),
        log_ratio=None if rows[0]["token_log_ratio"] is None else values("token_log_ratio"),
        behaviour=values("behaviour_logprobs"),
        versions=values("versions"),
        marks=() if conversation is None else conversation.marks(start, stop, show),
    )


def _tokenizer_of(folder: Path, token_ids: IntArray, response: str) -> Tokenizer | None:
    """Find the run's tokenizer, where its files are on this machine and it gives the recorded text for these tokens."""
    for file in _tokenizer_files(folder):
        tokenizer = _load(file)
        if tokenizer is not None:
            try:
                decoded = tokenizer.decode(token_ids[:MOST_COMPARED].tolist(), skip_special_tokens=True)
            except (OverflowError, ValueError, TypeError):  # not its tokens
                continue
            decoded = decoded.encode("utf-8", errors="replace").decode("utf-8")
            is_part = len(token_ids) > MOST_COMPARED
            if is_part:  # its last character may be unfinished
                decoded = decoded[:-CHARACTER_TOKENS]
                response = response[: len(decoded)]
            recorded = response
            for special in (token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special):
                recorded = recorded.replace(special, "")  # tags are in the recorded text (policy.tokenizer)
            if decoded in (response, recorded) or (is_part and recorded and decoded.startswith(recorded)):
                return tokenizer
    return None


def _tokenizer_files(folder: Path) -> list[Path]:
    """List where the run's tokenizer may be: beside its newest checkpoint's policy, or in the model it began with."""
    models = sorted(folder.glob("checkpoints/step_*/policy"), reverse=True)[:1]
    path = model_path(folder)
    files = [model / "tokenizer.json" for model in (*models, *([Path(path)] if path else []))]
    return [file for file in files if file.is_file()]


@functools.lru_cache(maxsize=8)
def _load(file: Path) -> Tokenizer | None:
    """Load a tokenizer once for each file, by the library below policy.tokenizer: it needs milliseconds, and has no way
    to run code that comes with a model.
    """
    try:
        return Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 - the library raises nothing narrower for a file that is no tokenizer
        return None


def _spans(versions: Sequence[int]) -> list[tuple[int, int]]:
    """List (version, tokens in a row that it sampled), in order."""
    return [(version, len(list(run))) for version, run in itertools.groupby(versions)]


def _scale(log_ratios: Sequence[Sequence[float] | None]) -> float | None:
    """Return the size that all but 1 % of the group's finite token log-ratios stay within; None: not measured."""
    measured = [np.array(found, dtype=np.float64) for found in log_ratios if found is not None]
    if not measured:
        return None
    sizes = np.abs(np.concatenate(measured))
    sizes = sizes[np.isfinite(sizes)]
    return float(np.quantile(sizes, 0.99)) if len(sizes) else math.nan


def _shortened(value: object) -> object:
    if not isinstance(value, str) or len(value) <= LONGEST:
        return value
    return f"{value[:LONGEST]} ... ({len(value) - LONGEST} more characters)"
