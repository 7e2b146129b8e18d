from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lpo_ray.config import load_config
from lpo_ray.config.cautions import cautions
from lpo_ray.run.numbers import render
from lpo_ray.run.spec import make_spec
from lpo_ray.tasks.table import with_environment

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"


def test_a_ratio_to_the_anchor_that_leaves_stale_tokens_unweighted_is_warned_of() -> None:
    ratio = ["objective.behaviour=engine", "objective.token_clip.kind=ppo_ratio"]
    (warning,) = cautions(load_config(QUICKSTART, ratio))
    assert "set token_clip.around=behaviour" in warning
    assert cautions(load_config(QUICKSTART, [*ratio, "objective.token_clip.around=behaviour"])) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("learner.gpus_per_rank=1",), ["model.dtype=float32 on GPUs"]),
        (("rollout.gpus_per_worker=2", "rollout.tensor_parallel_size=2"), ["rollout.dtype=float32 on GPUs"]),
        (
            ("learner.gpus_per_rank=0.5", "rollout.gpus_per_worker=0.5"),
            ["model.dtype=float32 and rollout.dtype=float32 on GPUs"],
        ),
        (("learner.gpus_per_rank=1", "model.dtype=bfloat16", "rollout.dtype=bfloat16"), []),
        ((), []),
        (("learner.gpus_per_rank=1", "model.path=null"), []),
    ],
)
def test_float32_on_gpus_is_warned_of_but_for_the_base_policy(overrides: tuple[str, ...], expected: list[str]) -> None:
    found = cautions(load_config(QUICKSTART, ["model.path=/some/model", "objective.behaviour=engine", *overrides]))
    assert [text[: len(part)] for text, part in zip(found, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), []),
        (("pipeline.max_staleness=2", "objective.behaviour=engine"), []),
        (("pipeline.max_staleness=2",), ["older weights count as the current policy's"]),
        (("pipeline.max_staleness=2", "objective.importance_cap=2"), ["only their tokens are weighted"]),
        (("sampling.top_p=0.9", "sampling.top_k=5"), ["sampling.top_p=0.9, sampling.top_k=5 cuts the support"]),
        (("rollout.dtype=bfloat16",), ["nothing corrects for it"]),
        (("rollout.dtype=bfloat16", "objective.importance_cap=2"), []),
        (("rollout.dtype=bfloat16", "objective.behaviour=engine"), []),
        (("objective.stale.policy=temper",), ["objective.stale has no effect with objective.behaviour=recomputed"]),
        (("objective.stale.policy=temper", "objective.behaviour=engine"), []),
        (("objective.length_norm=sum", "objective.behaviour=engine"), ["most groups may fall below"]),
        (("objective.reference_path=/some/model",), ["objective.reference_path has no effect"]),
        (("objective.divergence=first_order", "objective.target_temperature=effective_50"), ["grows with 1/tau"]),
        (
            (
                "objective.divergence=first_order",
                "objective.schedule=[{from_step: 9, target_temperature: effective_25}]",
            ),
            ["objective.target_temperature=effective_25: its gradient"],
        ),
        (("checkpoint.best=pass@1",), ["no checkpoint of the run has a value"]),
        (("checkpoint.best=pass@1", "evaluation.every=10"), []),
        (
            ("pipeline.max_staleness=1", "sampling.top_p=0.5"),
            ["pipeline.max_staleness=1 with objective.behaviour=recomputed", "sampling.top_p=0.5 cuts the support"],
        ),
    ],
)
def test_what_the_author_may_not_have_meant_is_said_once_each(
    overrides: tuple[str, ...], expected: list[str], tmp_path: Path
) -> None:
    spec = make_spec(load_config(QUICKSTART, [f"run.dir={tmp_path}", *overrides]))
    found = cautions(spec.config)
    assert len(found) == len(expected)
    for text, part in zip(found, expected, strict=True):
        assert part in text
        assert f"\nWarning: {text}" in render(spec)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_shipped_config_is_warned_about(path: Path) -> None:
    config = load_config(path)
    assert cautions(replace(config, task=with_environment(config.task))) == []  # as a spec has it
