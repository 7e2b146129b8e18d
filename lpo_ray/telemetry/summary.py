"""summary.json: the outcome of a run in one object; its keys are a contract that tools read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lpo_ray.telemetry.stage_clock import Seconds, shares

SHARES = ("sample", "verify", "anchor", "project", "publish", "wait", "evaluate", "checkpoint")
GROUPS = ("issued", "trained", "lost", "stale", "filtered")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Outcome of a run, as the recorder knows it at the end."""

    run: str
    seed: int
    steps: int
    """done, not planned"""
    model: str
    task: str
    wall_seconds: float
    objective: Mapping[str, object]
    before: Mapping[str, object] | None
    """Evaluation.to_json() of the policy that the run began with; None: not evaluated"""
    after: Mapping[str, object] | None
    """the same after the last step"""
    seconds: Seconds
    tokens: int
    """response tokens that were trained in ``seconds``"""
    advice: str | None
    """the last line of advice.advise; None: there was none to give"""
    groups: Mapping[str, int]
    """attempts, by what became of them"""

    def to_json(self) -> dict[str, object]:
        """Return the content of summary.json. Shares are of the time since the components were up; tokens per second
        are of the time that each lane was busy.
        """
        engines, learner = self.seconds.engines, self.seconds.learner
        of_run = shares(self.seconds.run)
        return {
            "run": self.run,
            "seed": self.seed,
            "steps": self.steps,
            "model": self.model,
            "task": self.task,
            "wall_seconds": self.wall_seconds,
            "objective": dict(self.objective),
            "evaluation": {"before": self.before, "after": self.after},
            "time_share": {name: of_run[name] for name in SHARES},
            "lanes": {"engines": shares(engines), "learner": shares(learner)},
            "advice": self.advice,
            "tokens_per_second": {
                "sampled": self._rate(engines["sample"] + engines["verify"]),
                "trained": self._rate(learner["project"] + learner["anchor"]),
            },
            "groups": {name: self.groups.get(name, 0) for name in GROUPS},
        }

    def _rate(self, seconds: float) -> float:
        return self.tokens / seconds if seconds else 0.0
