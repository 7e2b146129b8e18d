"""summary.json: the outcome of a run in one object; its keys are a contract that tools read."""

from __future__ import annotations

from collections.abc import Mapping

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
    seconds: Mapping[str, float],
    tokens: int,
    groups: Mapping[str, int],
) -> dict[str, object]:
    """``steps``: done, not planned. ``seconds`` by stage; shares are of the time since the components were up.
    ``tokens``: response tokens that were trained. ``before``, ``after``: Evaluation.to_json(), null when not made.
    """
    total = sum(seconds.get(name, 0.0) for name in SHARES)
    sampling = seconds.get("sample", 0.0) + seconds.get("verify", 0.0)
    training = seconds.get("project", 0.0) + seconds.get("anchor", 0.0)
    return {
        "run": run,
        "seed": seed,
        "steps": steps,
        "model": model,
        "task": task,
        "wall_seconds": wall_seconds,
        "objective": dict(objective),
        "evaluation": {"before": before, "after": after},
        "time_share": {name: seconds.get(name, 0.0) / total if total else 0.0 for name in SHARES},
        "tokens_per_second": {
            "sampled": tokens / sampling if sampling else 0.0,
            "trained": tokens / training if training else 0.0,
        },
        "groups": {name: groups.get(name, 0) for name in ("issued", "trained", "lost", "stale", "filtered")},
    }
