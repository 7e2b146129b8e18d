"""Metrics of a step: one flat dict of numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from lpo_ray.objective import Diagnostics, diagnose, effective_sample_size
from lpo_ray.records import (
    FloatArray,
    ProjectedGroup,
    Publication,
    StepRecord,
    TargetGroup,
    WorkerState,
    WorkerStatus,
)
from lpo_ray.telemetry.sinks import Value
from lpo_ray.telemetry.stage_clock import Seconds, shares

PASS_RATE_BINS = 11
"""bins of a histogram: no response passes | 9 equal bins in between | all pass"""
BOUND_SLACK = 1e-6
"""reward that is lost to rounding of log-ratios in fp32"""
ENDS = ("done", "turns", "tokens", "length")
"""why a conversation ended: by its environment, or by a limit"""
SCORES = frozenset({
    "anchor_drift", "bound_violations", "clip_fraction", "clip_mass", "difficulty_change", "difficulty_drift",
    "effective_sample_size", "effective_sample_size_min", "engine_mismatch", "equal_reward_fraction", "gap_after",
    "gap_before", "gap_closed", "gradient_norm", "kl_policy_target", "kl_target_policy", "largest_coefficient",
    "learning_rate", "left_out_fraction", "loss", "mean_length", "mean_reward", "measured_gain", "measured_gain_bound",
    "measured_predicted_gain", "mismatch_kl", "pass_rate", "policy_entropy", "predicted_gain", "realised_gain",
    "reference_kl", "response_length", "revisited_fraction", "reward", "shaping", "skipped_updates", "staleness",
    "staleness_max",
    "surrogate", "target_effective_size", "target_entropy", "target_temperature", "tempered_fraction", "tempering",
    "token_entropy", "tokens_per_second", "tokens_per_second_sampled", "tokens_per_second_trained", "total_variation",
    "total_variation_after", "truncated_fraction", "turns", "environment_tokens", "environment_seconds",
})  # fmt: skip
"""metrics of a step, and of an evaluation, by which checkpoint.best may choose; pass@k beside them"""


def step_metrics(record: StepRecord, *, pass_reward: float, seconds: Seconds) -> dict[str, Value]:
    """Compute the metrics of one step, which took ``seconds``. Entropies and divergences are in nats; means are over
    groups unless the name says otherwise.
    """
    return {
        "step": record.step,
        **_of_responses(record, pass_reward),
        **_of_conversations(record),
        **_of_updates(record),
        **_of_groups(record),
        **_of_measured(record),
        **_of_time(record, seconds),
        **_of_flow(record),
        **_of_publication(record.publication),
    }


def worker_metrics(workers: Sequence[WorkerStatus]) -> dict[str, int]:
    """Count the rollout workers in each state, and the replacements of each role's processes."""
    rollout = [worker for worker in workers if role_of(worker.name) == "rollout_worker"]
    restarts: Counter[str] = Counter()
    for worker in workers:
        restarts[role_of(worker.name)] += worker.restarts
    return {
        **{f"workers_{state}": sum(worker.state == state for worker in rollout) for state in get_args(WorkerState)},
        **{f"restarts_{role}": count for role, count in restarts.items()},
    }


def role_of(name: str) -> str:
    """Return the role of a process by its name: "rollout_worker" of "rollout worker 3"."""
    return name.rstrip("0123456789 ").replace(" ", "_")


def _of_responses(record: StepRecord, pass_reward: float) -> dict[str, Value]:
    targets = record.targets
    rewards = np.concatenate([target.scored.rewards for target in targets])
    responses = [response for target in targets for response in target.group.responses]
    return {
        "reward": float(rewards.mean()),
        "shaping": float(np.mean(np.concatenate([target.scored.shaped for target in targets]) - rewards)),
        "pass_rate": float((rewards >= pass_reward).mean()),
        "pass_rate_histogram": pass_rate_histogram([target.scored.rewards for target in targets], pass_reward),
        "response_length": float(np.mean([len(response.token_ids) for response in responses])),
        "truncated_fraction": float(np.mean([response.finish_reason == "length" for response in responses])),
    }


def _of_conversations(record: StepRecord) -> dict[str, Value]:
    """Say how the step's conversations went; {} when there was none. Means are over conversations."""
    responses = (response for target in record.targets for response in target.group.responses)
    found = [response.conversation for response in responses if response.conversation is not None]
    if not found:
        return {}
    opened = Counter(s.began or "as it opened" for c in found for s in c.segments if s.context_ids is not None)
    ended = Counter(conversation.ended for conversation in found)
    return {
        "conversations": len(found),
        "turns": float(np.mean([len(conversation.turns) for conversation in found])),
        "turns_max": max(len(conversation.turns) for conversation in found),
        "environment_tokens": float(np.mean([conversation.environment_tokens for conversation in found])),
        "environment_seconds": float(np.mean([conversation.environment_seconds for conversation in found])),
        "segments_opened": sum(opened.values()),
        "segments_opened_tokens": sum(conversation.context_tokens for conversation in found),
        **{f"segments_began_{why}": count for why, count in opened.most_common()},
        **{f"conversations_ended_{why}": ended[why] for why in dict.fromkeys((*ENDS, *ended))},
        "turns_kept": sum(len(conversation.turns) - 1 - conversation.moved for conversation in found),
        "turns_moved": sum(conversation.moved for conversation in found),
        "redrawn_turns": sum(conversation.redrawn for conversation in found),
        "dropped_tokens": sum(conversation.dropped for conversation in found),
    }


def _of_updates(record: StepRecord) -> dict[str, Value]:
    updates, projected = record.report.updates, record.report.groups
    return {
        "loss": record.report.loss,
        "loss_per_update": [update.loss for update in updates],
        "surrogate": float(np.mean([group.surrogate.sum() for group in projected])),
        "gradient_norm": float(np.mean([update.norms.gradient for update in updates])),
        "gradient_norm_per_update": [update.norms.gradient for update in updates],
        **_by_kind("gradient_norm", [update.norms.gradient_by_kind for update in updates]),
        **_by_kind("update_ratio", [update.norms.update_ratio_by_kind for update in updates]),
        "skipped_updates": sum(not update.norms.applied for update in updates),
        "not_finite": [str(found) for update in updates for found in update.not_finite],
        "learning_rate": record.batch.learning_rate,
        "token_entropy": float(np.mean(np.concatenate([group.entropy for group in projected]))),
        "clip_fraction": float(np.mean(np.concatenate([group.clip_fraction for group in projected]))),
        "clip_mass": _clip_mass(projected),
        "largest_coefficient": float(max(np.abs(group.coefficient).max() for group in projected)),
        "reference_kl": float(np.mean(np.concatenate([group.reference_kl for group in projected]))),
        "engine_mismatch": float(max(np.abs(group.engine_mismatch).max() for group in projected)),
        "padding_fraction": float(np.mean([update.padding for update in updates])),
        "imbalance_fraction": float(np.mean([update.imbalance for update in record.batch.updates])),
        "forwards": sum(update.forwards for update in updates),
    }


def _clip_mass(projected: Sequence[ProjectedGroup]) -> float:
    """Compute the share of the coefficients' size on tokens outside the clip band: what the clip takes of the pull."""
    sizes = np.concatenate([np.abs(group.coefficient) for group in projected])
    clipped = sizes * np.concatenate([group.clip_fraction for group in projected])
    return float(clipped.sum() / sizes.sum()) if sizes.any() else 0.0


def _of_groups(record: StepRecord) -> dict[str, Value]:
    targets, projected = record.targets, record.report.groups
    found = diagnostics(targets, projected)
    log_targets = _padded([target.log_target for target in targets])
    tempering = np.array([target.tempering for target in targets])
    ages = [record.step - 1 - target.group.oldest_version for target in targets]
    return {
        "target_temperature": float(np.mean([target.temperature for target in targets])),
        "target_entropy": _mean(found.target_entropy),
        "policy_entropy": _mean(found.policy_entropy),
        "kl_target_policy": _mean(found.kl_target_policy),
        "kl_policy_target": _mean(found.kl_policy_target),
        "total_variation": _mean(found.total_variation),
        "predicted_gain": _mean(found.predicted_gain),
        "realised_gain": _mean(found.realised_gain),
        "effective_sample_size": _mean(found.effective_sample_size),
        "effective_sample_size_min": float(found.effective_sample_size.min()),
        **_apart(targets, projected),
        "tempering": float(tempering.mean()),
        "tempered_fraction": float((tempering < 1.0).mean()),
        "target_effective_size": _mean(effective_sample_size(log_targets, mask=_mask(targets))),
        "equal_reward_fraction": _mean(found.equal_rewards),
        "staleness": float(np.mean(ages)),
        "staleness_max": int(max(ages)),
        "staleness_histogram": np.bincount(ages).tolist(),
    }


def _of_measured(record: StepRecord) -> dict[str, Value]:
    """Say where the step's updates brought P, on the groups that were measured after them; {} when none was. The bound
    is Theorem 2's with eps = TV(P, w*) and rewards centred in their range: R(P) - R(P_t) is at least the predicted gain
    less 2 Rmax eps. A virtual group (K = 1) has no simplex to move on, and is left out.
    """
    targets = [t for t in record.targets if t.group.key in record.after and len(t.log_target) > 1]
    if not targets:
        return {}
    found = _diagnose(targets, [record.after[target.group.key].log_ratio - target.offset for target in targets])
    before = _diagnose(targets, [target.start for target in targets])
    spread = torch.tensor([float(np.ptp(target.scored.shaped)) for target in targets], dtype=torch.float64)
    bound = found.predicted_gain - spread * found.total_variation
    gap, was = _mean(found.kl_target_policy), _mean(before.kl_target_policy)
    return {
        "measured_groups": len(targets),
        "gap_before": was,
        "gap_after": gap,
        "gap_closed": 1.0 - gap / was if was else 0.0,
        "total_variation_after": _mean(found.total_variation),
        "measured_predicted_gain": _mean(found.predicted_gain),
        "measured_gain": _mean(found.realised_gain),
        "measured_gain_bound": _mean(bound),
        "bound_violations": int((found.realised_gain < bound - BOUND_SLACK).sum()),
    }


def _of_time(record: StepRecord, seconds: Seconds) -> dict[str, Value]:
    """Return seconds, shares and tokens per second: of the whole step, and of the time that each lane was busy."""
    total = sum(seconds.run.values())
    tokens, sampled = sum(target.group.num_tokens for target in record.targets), record.backlog.sampled_tokens
    return {
        "tokens": tokens,
        "tokens_sampled": sampled,
        "tokens_per_second": _rate(tokens, total),
        "tokens_per_second_sampled": _rate(sampled, seconds.engines["sample"] + seconds.engines["verify"]),
        "tokens_per_second_trained": _rate(tokens, seconds.learner["project"] + seconds.learner["anchor"]),
        "seconds": total,
        **{f"seconds_{stage}": value for stage, value in seconds.run.items()},
        **{f"engines_{stage}": share for stage, share in shares(seconds.engines).items()},
        **{f"learner_{stage}": share for stage, share in shares(seconds.learner).items()},
    }


def _of_flow(record: StepRecord) -> dict[str, Value]:
    left_out = sum(record.left_out.values())
    return {
        **{f"groups_{state}": count for state, count in record.groups.items()},
        **{f"left_out_{why}": count for why, count in record.left_out.items()},
        "left_out_fraction": left_out / (left_out + len(record.targets) - record.reused),
        "reused": record.reused,
        "queue_on_the_way": record.backlog.on_the_way,
        "queue_waiting": record.backlog.waiting,
        "held_bytes": record.backlog.num_bytes,
    }


def _of_publication(publication: Publication) -> dict[str, Value]:
    return {
        "weights_version": str(publication.version),
        "publish_bytes": publication.num_bytes,
        "publish_seconds": publication.seconds,
        **{f"publish_seconds_{phase}": seconds for phase, seconds in publication.phases.items()},
        "publish_gb_per_second": publication.num_bytes / 1e9 / publication.seconds,
        "publish_difference": publication.difference,
        **{f"publish_difference_{name}": nats for name, nats in publication.proof.items()},
        **worker_metrics(publication.workers),
        "workers": [f"{worker.name}: {worker.state} {worker.version or '-'}" for worker in publication.workers],
    }


def diagnostics(targets: Sequence[TargetGroup], projected: Sequence[ProjectedGroup]) -> Diagnostics:
    """Diagnose a step's groups, padded to the largest K. P_t and P_theta of a tempered group are those from the mixture
    that it counts as sampled from; only the effective sample size is of its anchor before tempering.
    """
    by_name = {group.key: group for group in projected}
    found = _diagnose(targets, [by_name[target.group.key].log_ratio - target.offset for target in targets])
    anchors = _padded([target.anchor.log_ratio for target in targets])
    return replace(found, effective_sample_size=effective_sample_size(anchors, mask=_mask(targets)))


def _diagnose(targets: Sequence[TargetGroup], log_ratios: Sequence[np.ndarray]) -> Diagnostics:
    """Diagnose policies that see the groups' responses with these log-ratios, [K] each, in the target's simplex."""
    columns = (
        [target.scored.shaped for target in targets],
        [target.start for target in targets],
        log_ratios,
        [target.log_target for target in targets],
    )
    rewards, start, log_ratio, log_target = (_padded(column) for column in columns)
    tau = torch.tensor([target.temperature for target in targets], dtype=torch.float64)
    return diagnose(rewards, tau, start, log_ratio, log_target, mask=_mask(targets))


def _mask(targets: Sequence[TargetGroup]) -> torch.Tensor:
    return _padded([np.ones(len(target.log_target)) for target in targets]).bool()


def _padded(rows: Sequence[np.ndarray]) -> torch.Tensor:
    """Stack rows of unequal length to [P, K] in fp64, with zeros beyond their ends."""
    return pad_sequence([torch.from_numpy(np.array(row, dtype=np.float64)) for row in rows], batch_first=True)


def pass_rate_histogram(rewards: Sequence[FloatArray], pass_reward: float) -> list[int]:
    """Count the groups by the share of their responses that pass, in PASS_RATE_BINS bins: what the data is worth to the
    policy. Groups at either end have equal rewards where rewards are binary, so they have bins of their own.
    """
    counts = [0] * PASS_RATE_BINS
    inner = PASS_RATE_BINS - 2
    for values in rewards:
        passing, size = int((values >= pass_reward).sum()), len(values)
        counts[0 if passing == 0 else PASS_RATE_BINS - 1 if passing == size else 1 + inner * passing // size] += 1
    return counts


def _apart(targets: Sequence[TargetGroup], projected: Sequence[ProjectedGroup]) -> dict[str, Value]:
    """Measure how far the policy before the step was from the behaviour. Either the anchor pass measured it, or the
    learner at the update, for a behaviour that it recomputed; the other holds zeros.
    """
    drift = [target.anchor.drift.mean() for target in targets], [group.engine_drift.mean() for group in projected]
    kl = [target.anchor.mismatch_kl.mean() for target in targets], [group.engine_kl.mean() for group in projected]
    return {
        "anchor_drift": float(sum(np.mean(part) for part in drift)),
        "mismatch_kl": float(sum(np.mean(part) for part in kl)),
    }


def _by_kind(name: str, updates: Sequence[Mapping[str, float]]) -> dict[str, Value]:
    """Return the mean for each kind of parameter, over the updates that have it."""
    kinds = sorted({kind for update in updates for kind in update})
    return {f"{name}_{kind}": float(np.mean([update[kind] for update in updates if kind in update])) for kind in kinds}


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean())


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0
