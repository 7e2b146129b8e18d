"""Codec of the ledger: a scored group as bytes and back.

safetensors: no code runs when it is read, and a file cut short is refused.
"""

from __future__ import annotations

import json
from typing import cast

import numpy as np
from safetensors.numpy import load, save

from lpo_ray.records import (
    AnchorGroup,
    ConversationColumns,
    ConversationShape,
    FinishReason,
    GroupColumns,
    Prompt,
    PromptGroup,
    ScoredGroup,
)

_FINISHED: tuple[FinishReason, ...] = ("stop", "length")


def to_bytes(scored: ScoredGroup) -> bytes:
    """Encode a group: 12 bytes a sampled token, and the prompt; of conversations 4 bytes for each other token, and
    their shapes.
    """
    group, columns = scored.group, scored.group.columns()
    text = "\0".join((group.prompt.prompt_id, group.prompt.verifier, group.prompt.answer))
    return save(
        {
            "text": np.frombuffer(text.encode("utf-8", errors="surrogatepass"), dtype=np.uint8),
            "attempt": np.array([group.attempt], dtype=np.int32),
            "prompt": group.prompt.token_ids.astype(np.int32),
            "lengths": np.array(columns.lengths, dtype=np.int32),
            "token_ids": columns.token_ids.astype(np.int32),
            "versions": columns.versions.astype(np.int32),
            "logprobs": columns.behaviour_logprobs.astype(np.float32),
            "finished": np.array([_FINISHED.index(reason) for reason in columns.finish_reasons], dtype=np.uint8),
            "rewards": scored.rewards.astype(np.float32),
            "shaping": scored.shaping.astype(np.float32),
            **_conversations_to_arrays(columns.conversations),
        }
    )


def from_bytes(content: bytes) -> ScoredGroup:
    """Decode the group that ``to_bytes`` was given."""
    found = load(content)
    text = found["text"].tobytes().decode("utf-8", errors="surrogatepass")
    prompt_id, verifier, answer = text.split("\0", 2)
    columns = GroupColumns(
        tuple(found["lengths"].tolist()),
        found["token_ids"].astype(np.int64),
        cast("np.ndarray", found["logprobs"]),
        found["versions"].astype(np.int64),
        tuple(_FINISHED[number] for number in found["finished"].tolist()),
        _conversations_from_arrays(found),
    )
    prompt = Prompt(prompt_id, found["prompt"].astype(np.int64), answer, verifier)
    group = PromptGroup.of_columns(prompt, int(found["attempt"][0]), columns)
    shaping = found.get("shaping", np.zeros(0, dtype=np.float32))  # none in the ledgers of earlier versions
    return ScoredGroup(group, cast("np.ndarray", found["rewards"]), shaping=cast("np.ndarray", shaping))


def _conversations_to_arrays(found: ConversationColumns | None) -> dict[str, np.ndarray]:
    if found is None:
        return {}
    shapes = json.dumps(found.shapes).encode()
    return {"conversations": np.frombuffer(shapes, dtype=np.uint8), "others": found.others.astype(np.int32)}


def _conversations_from_arrays(found: dict[str, np.ndarray]) -> ConversationColumns | None:
    if "conversations" not in found:
        return None
    shapes = (plain and ConversationShape.of_plain(plain) for plain in json.loads(found["conversations"].tobytes()))
    return ConversationColumns(tuple(shapes), found["others"].astype(np.int64))


def anchor_to_bytes(anchor: AnchorGroup) -> bytes:
    """Encode a group's anchor: 12 bytes a response."""
    return np.stack([anchor.log_ratio, anchor.drift, anchor.mismatch_kl]).astype("<f4").tobytes()


def anchor_from_bytes(content: bytes) -> AnchorGroup:
    """Decode the anchor that ``anchor_to_bytes`` was given."""
    return AnchorGroup(*np.frombuffer(content, dtype="<f4").reshape(3, -1))
