"""summary.json: the outcome of a run in one object; its keys are a contract that tools read."""

from __future__ import annotations

from collections.abc import Mapping

from lpo_ray.telemetry.stage_clock import Seconds, shares

SHARES = ("sample", "verify", "anchor", "project", "publish", "wait", "evaluate", "checkpoint")


def build_summary(
    *,
    run: str,
    seed: int,
    steps: int,
    model: str,
    task: str,
    wall_seconds: float,
    objective: Mapping[str, object],
    before: Mapping[str, object] | None,
    after: Mapping[str, object] | None,
    seconds: Seconds,
    tokens: int,
    advice: str | None,
    groups: Mapping[str, int],
) -> dict[str, object]:
    """``steps``: done, not planned. Shares are of the time since the components were up. ``tokens``: response
    tokens that were trained in ``seconds``; tokens per second are of the time that each lane was busy. ``advice``: of
    advice.advise, null when there was none to give. ``before``, ``after``: Evaluation.to_json(), null when not made.
    """
    sampling = seconds.engines["sample"] + seconds.engines["verify"]
    training = seconds.learner["project"] + seconds.learner["anchor"]
    of_run = shares(seconds.run)
    return {
        "run": run,
        "seed": seed,
        "steps": steps,
        "model": model,
        "task": task,
        "wall_seconds": wall_seconds,
        "objective": dict(objective),
        "evaluation": {"before": before, "after": after},
        "time_share": {name: of_run[name] for name in SHARES},
        "lanes": {"engines": shares(seconds.engines), "learner": shares(seconds.learner)},
        "advice": advice,
        "tokens_per_second": {
            "sampled": tokens / sampling if sampling else 0.0,
            "trained": tokens / training if training else 0.0,
        },
        "groups": {name: groups.get(name, 0) for name in ("issued", "trained", "lost", "stale", "filtered")},
    }
