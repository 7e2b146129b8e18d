"""Metrics for Prometheus and their names: one table, against which a test checks the Grafana dashboard.

Ray puts ``ray_`` in front of each name. All have the tag ``run``; those with a ``{tag}`` in their key have it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lpo_ray.telemetry.metrics import Value

Kind = Literal["gauge", "counter", "histogram"]
BOUNDARIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""bounds of the histograms, in seconds"""


@dataclass(frozen=True, slots=True)
class Exported:
    """Row of EXPORTED: one metric."""

    key: str
    """key of metrics.jsonl; "{tag}" in it stands for any value of the tag"""
    help: str
    unit: str
    """end of the metric's name, before "_total" of a counter"""
    kind: Kind = "gauge"
    """counter: the key is what one step adds; histogram: seconds of one step"""

    @property
    def tag(self) -> str | None:
        """Name of the tag that completes the key; None: the key is complete."""
        found = re.search(r"\{(\w+)\}", self.key)
        return found[1] if found else None


EXPORTED: dict[str, Exported] = {
    "lpo_ray_done_steps": Exported("step", "steps that are committed", "steps"),
    "lpo_ray_response_reward": Exported("reward", "mean reward of the step's responses", "reward"),
    "lpo_ray_response_pass_ratio": Exported("pass_rate", "share of the step's responses that pass", "ratio"),
    "lpo_ray_evaluation_pass_ratio": Exported("evaluation_pass@{k}", "pass@k on held-out prompts", "ratio"),
    "lpo_ray_response_length_tokens": Exported("response_length", "mean length of the step's responses", "tokens"),
    "lpo_ray_response_truncated_ratio": Exported("truncated_fraction", "responses cut at max_tokens", "ratio"),
    "lpo_ray_equal_rewards_ratio": Exported("equal_reward_fraction", "groups whose rewards are all equal", "ratio"),
    "lpo_ray_token_entropy_nats": Exported("token_entropy", "mean entropy of a token's distribution", "nats"),
    "lpo_ray_target_entropy_nats": Exported("target_entropy", "mean entropy of the targets w*", "nats"),
    "lpo_ray_policy_entropy_nats": Exported("policy_entropy", "mean entropy of the policy on the groups", "nats"),
    "lpo_ray_kl_target_policy_nats": Exported("kl_target_policy", "KL(w* || P), what projecting has to close", "nats"),
    "lpo_ray_kl_policy_target_nats": Exported("kl_policy_target", "KL(P || w*)", "nats"),
    "lpo_ray_kl_reference_nats": Exported("reference_kl", "KL(policy || reference) per token", "nats"),
    "lpo_ray_kl_behaviour_nats": Exported("mismatch_kl", "KL(behaviour || policy before the step) per token", "nats"),
    "lpo_ray_gradient_norm": Exported("gradient_norm", "before clipping, mean of the step's updates", "norm"),
    "lpo_ray_skipped_updates_total": Exported(
        "skipped_updates", "updates skipped for NaN or Inf", "updates", "counter"
    ),
    "lpo_ray_staleness_mean_steps": Exported("staleness", "mean age of the groups that were trained", "steps"),
    "lpo_ray_staleness_max_steps": Exported("staleness_max", "age of the oldest group that was trained", "steps"),
    "lpo_ray_effective_sample_size_responses": Exported("effective_sample_size", "mean of the groups", "responses"),
    "lpo_ray_effective_sample_size_min_responses": Exported(
        "effective_sample_size_min", "smallest of the groups", "responses"
    ),
    "lpo_ray_sampled_tokens_total": Exported(
        "tokens_sampled", "response tokens of groups that were scored", "tokens", "counter"
    ),
    "lpo_ray_trained_tokens_total": Exported("tokens", "response tokens that were trained", "tokens", "counter"),
    "lpo_ray_sampled_tokens_per_second": Exported(
        "tokens_per_second_sampled", "of the time that the engines were busy", "tokens_per_second"
    ),
    "lpo_ray_trained_tokens_per_second": Exported(
        "tokens_per_second_trained", "of the time that the learner was busy", "tokens_per_second"
    ),
    "lpo_ray_step_seconds": Exported("seconds", "duration of a step", "seconds", "histogram"),
    "lpo_ray_stage_seconds": Exported("seconds_{stage}", "of the last step, each instant counted once", "seconds"),
    "lpo_ray_engines_share_ratio": Exported("engines_{stage}", "what the engines did in the last step", "ratio"),
    "lpo_ray_learner_share_ratio": Exported("learner_{stage}", "what the learner did in the last step", "ratio"),
    "lpo_ray_publish_seconds": Exported("publish_seconds", "first gather to last proof", "seconds", "histogram"),
    "lpo_ray_publish_phase_seconds": Exported("publish_seconds_{phase}", "phases of the last publish", "seconds"),
    "lpo_ray_publish_bytes": Exported("publish_bytes", "sent to each engine by the last publish", "bytes"),
    "lpo_ray_publish_difference_nats": Exported(
        "publish_difference", "largest log-prob difference of engines and learner at the proof", "nats"
    ),
    "lpo_ray_publish_proof_nats": Exported(
        "publish_difference_{figure}", "the proof's typical difference, its baseline and the limits", "nats"
    ),
    "lpo_ray_queued_groups": Exported("queue_{place}", "groups on the way, and waiting to be trained", "groups"),
    "lpo_ray_held_bytes": Exported("held_bytes", "what the groups take, or may take, of the driver's memory", "bytes"),
    "lpo_ray_ledger_groups": Exported("groups_{state}", "attempts by what became of them", "groups"),
    "lpo_ray_left_out_groups": Exported("left_out_{why}", "groups that the last step did not train", "groups"),
    "lpo_ray_left_out_ratio": Exported("left_out_fraction", "share of the last step's groups", "ratio"),
    "lpo_ray_conversation_turns": Exported("turns", "mean of the step's conversations", "turns"),
    "lpo_ray_longest_conversation_turns": Exported("turns_max", "of the step's longest conversation", "turns"),
    "lpo_ray_environment_tokens": Exported(
        "environment_tokens", "mean of a conversation, by its environment", "tokens"
    ),
    "lpo_ray_environment_seconds": Exported("environment_seconds", "of tools and environment, mean", "seconds"),
    "lpo_ray_ended_conversations": Exported("conversations_ended_{why}", "of the step, by why", "conversations"),
    "lpo_ray_begun_segments": Exported("segments_began_{why}", "with a context of their own, by why", "segments"),
    "lpo_ray_later_turns_total": Exported(
        "turns_{engine}", "kept: drawn by the engine of the turn before; moved: by another", "turns", "counter"
    ),
    "lpo_ray_redrawn_turns_total": Exported(
        "redrawn_turns", "drawn again, since their engine was lost", "turns", "counter"
    ),
    "lpo_ray_open_conversations": Exported("conversations_open", "that have an environment now", "conversations"),
    "lpo_ray_environment_processes": Exported("environment_processes", "that environments have", "processes"),
    "lpo_ray_rollout_workers": Exported("workers_{state}", "rollout workers by state", "workers"),
    "lpo_ray_role_restarts": Exported("restarts_{role}", "replacements of the processes of a role", "restarts"),
}
"""name -> row. A key that is a row's own belongs to that row alone, not to one with a tag"""


class Sample(NamedTuple):
    """Number of one metric, with its tags."""

    name: str
    tags: Mapping[str, str]
    value: float


def samples(metrics: Mapping[str, Value]) -> Iterator[Sample]:
    """Yield what is exported of ``metrics``, which may have a few of metrics.jsonl's keys only."""
    for key, value in metrics.items():
        if isinstance(value, int | float) and (found := _row_of(key)):
            yield Sample(*found, value)


def _row_of(key: str) -> tuple[str, dict[str, str]] | None:
    if key in _BY_KEY:
        return _BY_KEY[key], {}
    for name, tag, pattern in _PATTERNS:
        if found := pattern.fullmatch(key):
            return name, {tag: found[1]}
    return None


_BY_KEY = {row.key: name for name, row in EXPORTED.items() if row.tag is None}
_PATTERNS = [
    (name, row.tag, re.compile(re.escape(row.key).replace(re.escape(f"{{{row.tag}}}"), "(.+)")))
    for name, row in EXPORTED.items()
    if row.tag is not None
]
