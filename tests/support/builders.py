"""Small records for tests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from lpo_ray.records import Prompt, PromptGroup, Response, ScoredGroup, TargetGroup, zero_anchor
from lpo_ray.run.recorder import Recorder
from lpo_ray.run.settings import recorder_settings
from lpo_ray.run.spec import RunSpec

NOON = time.mktime((2026, 7, 1, 12, 0, 5, 0, 0, -1))


def make_prompt(number: int = 0, length: int = 4, vocabulary: int = 50) -> Prompt:
    rng = np.random.default_rng(number)
    tokens = rng.integers(0, vocabulary, size=length)
    return Prompt(f"train-{number:08d}", tokens, '{"numbers": [1, 2, 3], "target": 6}', "countdown")


def make_group(
    number: int = 0,
    lengths: Sequence[int] = (3, 5),
    *,
    prompt_length: int = 4,
    vocabulary: int = 50,
    version: int = 0,
    attempt: int = 0,
) -> PromptGroup:
    rng = np.random.default_rng(1000 + number)
    responses = tuple(
        Response(
            rng.integers(0, vocabulary, size=length),
            rng.normal(-2, 0.5, size=length).astype(np.float32),
            np.full(length, version, dtype=np.int64),
            "stop",
        )
        for length in lengths
    )
    return PromptGroup(make_prompt(number, prompt_length, vocabulary), attempt, responses)


def make_scored(number: int = 0, lengths: Sequence[int] = (3, 5), **kwargs: int) -> ScoredGroup:
    group = make_group(number, lengths, **kwargs)
    rewards = np.random.default_rng(2000 + number).integers(0, 2, size=len(lengths)).astype(np.float32)
    return ScoredGroup(group, rewards)


def make_target(number: int = 0, lengths: Sequence[int] = (3, 5), **kwargs: int) -> TargetGroup:
    scored = make_scored(number, lengths, **kwargs)
    logits = np.random.default_rng(3000 + number).normal(size=len(lengths))
    log_target = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
    return TargetGroup(scored, log_target, zero_anchor([scored])[0], 1.0)


def recorder_of(spec: RunSpec, model_path: Path, console: Console) -> Recorder:
    """The recorder of a run, without the sinks of a cluster."""
    return Recorder(recorder_settings(spec, str(model_path)), console, spec.tokenizer(str(model_path)))
