"""One flat dict of numbers for each step: what LPO.md section 6 asks for, and what users look at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from lpo_ray.objective import Diagnostics, diagnose, effective_sample_size
from lpo_ray.records import FloatArray, ProjectedGroup, Publication, StepReport, TargetGroup, TrainBatch
from lpo_ray.telemetry.stages import Seconds, shares

Value = int | float | str | list[int] | list[float] | list[str]

PASS_RATE_BINS = 11
"""no response passes | 9 equal bins in between | all pass"""


def step_metrics(
    step: int,
    targets: Sequence[TargetGroup],
    batch: TrainBatch,
    report: StepReport,
    *,
    pass_reward: float,
    seconds: Seconds,
    groups: Mapping[str, int],
    publication: Publication,
    left_out: Mapping[str, int],
    reused: int,
) -> dict[str, Value]:
    """Metrics of one step. ``seconds``: of this step. Entropies and divergences in nats; means over groups
    unless the name says otherwise.
    """
    rewards = np.concatenate([target.scored.rewards for target in targets])
    responses = [response for target in targets for response in target.group.responses]
    lengths = np.array([len(response.token_ids) for response in responses])
    ages = [step - 1 - target.group.oldest_version for target in targets]
    projected = report.groups
    found = diagnostics(targets, projected)
    tempering = np.array([target.tempering for target in targets])
    tokens, total = int(lengths.sum()), sum(seconds.run.values())
    return {
        "step": step,
        "reward": float(rewards.mean()),
        "pass_rate": float((rewards >= pass_reward).mean()),
        "pass_rate_histogram": pass_rate_histogram([target.scored.rewards for target in targets], pass_reward),
        "loss": report.loss,
        "loss_per_update": [update.loss for update in report.updates],
        "surrogate": float(np.mean([group.surrogate.sum() for group in projected])),
        "gradient_norm": float(np.mean([update.norms.gradient for update in report.updates])),
        "gradient_norm_per_update": [update.norms.gradient for update in report.updates],
        **_by_kind("gradient_norm", [update.norms.gradient_by_kind for update in report.updates]),
        **_by_kind("update_ratio", [update.norms.update_ratio_by_kind for update in report.updates]),
        "skipped_updates": sum(not update.norms.applied for update in report.updates),
        "not_finite": [str(found) for update in report.updates for found in update.not_finite],
        "learning_rate": batch.learning_rate,
        "token_entropy": float(np.mean(np.concatenate([group.entropy for group in projected]))),
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
        "equal_reward_fraction": _mean(found.equal_rewards),
        "clip_fraction": float(np.mean(np.concatenate([group.clip_fraction for group in projected]))),
        "largest_coefficient": float(max(np.abs(group.coefficient).max() for group in projected)),
        "reference_kl": float(np.mean(np.concatenate([group.reference_kl for group in projected]))),
        "engine_mismatch": float(max(np.abs(group.engine_mismatch).max() for group in projected)),
        "response_length": float(lengths.mean()),
        "truncated_fraction": float(np.mean([response.finish_reason == "length" for response in responses])),
        "staleness": float(np.mean(ages)),
        "staleness_max": int(max(ages)),
        "staleness_histogram": np.bincount(ages).tolist(),
        "tokens": tokens,
        "tokens_per_second": tokens / total if total else 0.0,
        "padding_fraction": float(np.mean([update.padding for update in report.updates])),
        "imbalance_fraction": float(np.mean([update.imbalance for update in batch.updates])),
        "forwards": sum(update.forwards for update in report.updates),
        "seconds": total,
        **{f"seconds_{stage}": value for stage, value in seconds.run.items()},
        **{f"engines_{stage}": share for stage, share in shares(seconds.engines).items()},
        **{f"learner_{stage}": share for stage, share in shares(seconds.learner).items()},
        **{f"groups_{state}": count for state, count in groups.items()},
        **{f"left_out_{why}": count for why, count in left_out.items()},
        "left_out_fraction": sum(left_out.values()) / (sum(left_out.values()) + len(targets) - reused),
        "reused": reused,
        "weights_version": str(publication.version),
        "publish_bytes": publication.num_bytes,
        **{f"publish_seconds_{phase}": seconds for phase, seconds in publication.phases.items()},
        "publish_gb_per_second": publication.num_bytes / 1e9 / publication.seconds,
        "publish_difference": publication.difference,
        "workers_serving": sum(worker.state == "serving" for worker in publication.workers),
        "workers": [f"{worker.name}: {worker.state} {worker.version or '-'}" for worker in publication.workers],
    }


def diagnostics(targets: Sequence[TargetGroup], projected: Sequence[ProjectedGroup]) -> Diagnostics:
    """Diagnostics of a step's groups, padded to the largest K. Of a tempered group P_t and P_theta are those from the
    mixture that it counts as sampled from; only the effective sample size is of its anchor before tempering.
    """
    by_name = {group.key: group for group in projected}
    found = [by_name[target.group.key] for target in targets]
    width = max(len(target.log_target) for target in targets)
    mask = torch.zeros(len(targets), width, dtype=torch.bool)
    columns = [torch.zeros(len(targets), width, dtype=torch.float64) for _ in range(5)]
    for row, (target, group) in enumerate(zip(targets, found, strict=True)):
        size = len(target.log_target)
        mask[row, :size] = True
        s_t, log_ratio = target.anchor.log_ratio, group.log_ratio - target.offset
        values = (target.scored.rewards, s_t, target.start, log_ratio, target.log_target)
        for column, value in zip(columns, values, strict=True):
            column[row, :size] = torch.from_numpy(np.array(value, dtype=np.float64))
    tau = torch.tensor([target.temperature for target in targets], dtype=torch.float64)
    rewards, anchor, start, log_ratio, log_target = columns
    found = diagnose(rewards, tau, start, log_ratio, log_target, mask=mask)
    return replace(found, effective_sample_size=effective_sample_size(anchor, mask=mask))


def pass_rate_histogram(rewards: Sequence[FloatArray], pass_reward: float) -> list[int]:
    """Number of groups by the share of their responses that pass, in PASS_RATE_BINS bins: what the data is worth to the
    policy. Groups at either end have equal rewards where rewards are binary, so they have bins of their own.
    """
    counts = [0] * PASS_RATE_BINS
    inner = PASS_RATE_BINS - 2
    for values in rewards:
        passing, size = int((values >= pass_reward).sum()), len(values)
        counts[0 if passing == 0 else PASS_RATE_BINS - 1 if passing == size else 1 + inner * passing // size] += 1
    return counts


def _apart(targets: Sequence[TargetGroup], projected: Sequence[ProjectedGroup]) -> dict[str, Value]:
    """How far the policy before the step was from what sampled the groups. Either the anchor pass measured it, or the
    learner at the update, for a behaviour that it recomputed; the other holds zeros.
    """
    drift = [target.anchor.drift.mean() for target in targets], [group.engine_drift.mean() for group in projected]
    kl = [target.anchor.mismatch_kl.mean() for target in targets], [group.engine_kl.mean() for group in projected]
    return {
        "anchor_drift": float(sum(np.mean(part) for part in drift)),
        "mismatch_kl": float(sum(np.mean(part) for part in kl)),
    }


def _by_kind(name: str, updates: Sequence[Mapping[str, float]]) -> dict[str, Value]:
    """Mean over the updates that have the kind of parameter."""
    kinds = sorted({kind for update in updates for kind in update})
    return {f"{name}_{kind}": float(np.mean([update[kind] for update in updates if kind in update])) for kind in kinds}


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean())
