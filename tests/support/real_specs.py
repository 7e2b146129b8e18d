"""Spec of a small run on the real stack: Ray, vLLM, DeepSpeed."""

from __future__ import annotations

from pathlib import Path

from lpo_ray.config import load_config
from lpo_ray.run.spec import RunSpec, make_spec

QUICKSTART = Path(__file__).parent.parent.parent / "configs" / "quickstart.yaml"
STEPS, GROUPS, SIZE = 2, 8, 4


def plan_of(folder: Path, policy: Path, *overrides: str) -> RunSpec:
    return make_spec(
        load_config(
            QUICKSTART,
            [
                f"run.dir={folder}", f"run.steps={STEPS}", f"model.path={policy}", "verifier.deadline_seconds=1.0",
                "verifier.max_retries=1", f"pipeline.groups_per_step={GROUPS}", f"sampling.group_size={SIZE}",
                "evaluation.num_prompts=6", "evaluation.samples_per_prompt=4", "evaluation.ks=[1,4]",
                "telemetry.progress=quiet", "learner.lr=1e-3",
                "task.verifier=tests.support.e2e_verifiers:digits", *overrides,
            ],
        )
    )  # fmt: skip
