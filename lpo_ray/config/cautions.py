"""Warnings about a valid configuration that its author may not have meant."""

from __future__ import annotations

from lpo_ray.config.conversations import without_effect
from lpo_ray.config.engine import less_precise
from lpo_ray.config.schema import (
    Behaviour,
    ClipCentre,
    ClusterKind,
    Config,
    EqualRewards,
    LengthNorm,
    StaleConfig,
    StalePolicy,
)


def cautions(config: Config) -> list[str]:
    """Say in one sentence each what may not be meant; shown by --dry-run and at the start of a run."""
    return [*_of_behaviour(config), *_of_what_has_no_effect(config), *_of_precision(config)]


def _of_behaviour(config: Config) -> list[str]:
    objective, pipeline = config.objective, config.pipeline
    found = []
    if objective.behaviour is Behaviour.recomputed:
        weighted = objective.importance_cap is not None
        if pipeline.max_staleness:
            found.append(
                f"pipeline.max_staleness={pipeline.max_staleness} with objective.behaviour=recomputed: responses of "
                "older weights count as the current policy's and targets have no anchor"
                + (", only their tokens are weighted (objective.importance_cap)" if weighted else "")
                + "; objective.behaviour=engine has the anchor"
            )
        if truncated := truncated_support(config):
            found.append(
                f"{truncated} cuts the support of the sampling distribution, and objective.behaviour=recomputed scores "
                "the responses under the whole one: the policy that is trained is not quite the one that sampled"
            )
        if config.model.dtype != config.rollout.dtype and not weighted:
            found.append(
                f"rollout.dtype={config.rollout.dtype} with model.dtype={config.model.dtype} and "
                "objective.behaviour=recomputed: the engine's log-probs differ from the learner's and nothing corrects "
                "for it; objective.behaviour=engine does, and so does objective.importance_cap"
            )
    if named := less_precise(config.rollout):
        found.append(
            f"rollout.engine_args has {named}: engines sample from another distribution than the learner computes, and "
            "differ from it by more than rounding; watch what the proof of weights measures, and the importance ratios"
        )
    if pipeline.equal_rewards is EqualRewards.drop and (pipeline.max_staleness or pipeline.updates_per_step > 1):
        found.append(
            "pipeline.equal_rewards=drop off-policy or with several updates a step: groups of equal rewards would pull "
            "the policy back to the anchor, and that is dropped too"
        )
    clip = objective.token_clip
    if objective.behaviour is Behaviour.engine and clip.kind == "ppo_ratio" and clip.around is ClipCentre.anchor:
        found.append(
            "objective.token_clip.kind=ppo_ratio with objective.behaviour=engine and token_clip.around=anchor: its "
            "ratio is to the policy before the step, so stale tokens are not weighted; set "
            "token_clip.around=behaviour, or behaviour=recomputed with objective.importance_cap"
        )
    points = [(objective.divergence, objective.target_temperature)]
    for change in objective.schedule:
        points.append((change.divergence or points[-1][0], change.target_temperature or points[-1][1]))
    for divergence, temperature in dict.fromkeys(points):
        if divergence == "first_order" and str(temperature).startswith("effective_"):
            found.append(
                f"objective.divergence=first_order with objective.target_temperature={temperature}: its gradient grows "
                "with 1/tau, and this tau is small where few responses count; take another temperature or divergence"
            )
    if (
        objective.behaviour is Behaviour.engine
        and objective.length_norm is LengthNorm.sum
        and (objective.stale.policy is not StalePolicy.keep)
    ):
        found.append(
            f"objective.length_norm=sum with objective.stale.policy={objective.stale.policy.value}: summed log-ratios "
            "of long responses are far apart after a small drift, so most groups may fall below objective.stale.min_ess"
        )
    return found


def _of_what_has_no_effect(config: Config) -> list[str]:
    objective, found = config.objective, without_effect(config)
    if objective.behaviour is Behaviour.recomputed and objective.stale != StaleConfig():
        found.append(
            "objective.stale has no effect with objective.behaviour=recomputed, which measures no drift before the "
            "update; set objective.behaviour=engine"
        )
    if objective.reference_path is not None and not objective.reference_kl:
        found.append("objective.reference_path has no effect while objective.reference_kl=0")
    if config.rollout.engine_args and config.cluster.kind is ClusterKind.inprocess:
        found.append("rollout.engine_args has no effect with cluster.kind=inprocess, whose engine is not vLLM")
    best, evaluation = config.checkpoint.best, config.evaluation
    if best is not None and best.startswith("pass@") and not evaluation.every:
        found.append(
            f"checkpoint.best={best} with evaluation.every=0: the policy is evaluated before and after the run only, "
            "so no checkpoint of the run has a value; set evaluation.every"
        )
    return found


def _of_precision(config: Config) -> list[str]:
    """Warn of a model in float32 on GPUs, but for the base policy: it is small, and the same on every machine."""
    roles = (("model.dtype", config.model.dtype, config.learner.gpus_per_rank),
             ("rollout.dtype", config.rollout.dtype, config.rollout.gpus_per_worker))  # fmt: skip
    slow = [f"{key}=float32" for key, dtype, gpus in roles if gpus and dtype == "float32"]
    if not slow or config.model.path is None:
        return []
    return [
        f"{' and '.join(slow)} on GPUs: products of matrices are float32 throughout (no TF32), on an H100 at a "
        "fifteenth of bfloat16's rate, and weights take twice the memory; with bfloat16 the optimizer's weights and "
        "the sums of gradients are float32 all the same"
    ]


def truncated_support(config: Config) -> str:
    """Name the sampling options that cut the support, as they are set; empty when none does."""
    sampling = config.sampling
    options = (("top_p", sampling.top_p, 1.0), ("top_k", sampling.top_k, 0), ("min_p", sampling.min_p, 0.0))
    return ", ".join(f"sampling.{name}={value}" for name, value, off in options if value != off)
