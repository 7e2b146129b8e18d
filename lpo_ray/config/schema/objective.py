"""The target, the projection, and the groups that a step trains on."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from lpo_ray.config.schema.choices import Behaviour, ClipCentre, EqualRewards, Inflight, LengthNorm, StalePolicy


@dataclass
class TokenClipConfig:
    """Bounds within which one token's log-ratio counts."""

    kind: str = "clamp"
    """row of objective.TOKEN_CLIPS: clamp | one_sided | ppo_ratio | none; or "module:function" """
    low: float = 0.2
    """the band is [log(1 - low), log(1 + high)]"""
    high: float = 0.2
    """upper edge of the band, see low"""
    around: ClipCentre = ClipCentre.anchor
    """what the band is around; matters with behaviour=engine, where it is one pass without gradient for updates after a
    step's first
    """


@dataclass
class StaleConfig:
    """Groups that have drifted; read with behaviour=engine only."""

    policy: StalePolicy = StalePolicy.drop
    """what is done with such a group"""
    min_ess: float = 0.3
    """least effective sample size 1 / sum P_t^2, as a share of K: drop below it, temper up to it"""
    max_drift: float = 0.18232
    """nats, log 1.2: drop a group whose mean abs(log pi_t - log pi_b) is above"""


@dataclass
class ChangeConfig:
    """Change of the objective from a step on; null: as before it."""

    from_step: int = MISSING
    """steps that come before it"""
    divergence: str | None = None
    """divergence from then on, as objective.divergence"""
    target_temperature: str | float | int | None = None
    """tau from then on, as objective.target_temperature"""
    temperature_scale: float | None = None
    """scale from then on, as objective.temperature_scale"""


@dataclass
class ObjectiveConfig:
    """The target distribution over a group's responses, and how the policy is projected onto it."""

    divergence: str = "forward_kl"
    """row of objective.DIVERGENCES: forward_kl | reverse_kl | jensen_shannon | first_order | first_order_beta |
    pointwise; or "module:function" """
    target_temperature: str | float | int = "group_std"
    """tau: row of objective.TEMPERATURES (group_std | group_mean | one | batch_std | effective_25 | effective_50 |
    effective_75), "module:function", or a number above 0
    """
    temperature_scale: float = 1.0
    """multiplies tau"""
    schedule: list[ChangeConfig] = field(default_factory=list)
    """changes of these three, ascending by from_step"""
    ddof: int = 0
    """subtracted from the count in the standard deviation of rewards: 0 or 1"""
    temperature_floor: float = 1e-6
    """added to a tau that is computed from rewards, so that it is never 0"""
    token_clip: TokenClipConfig = field(default_factory=TokenClipConfig)
    length_norm: LengthNorm = LengthNorm.mean
    """a response's log-ratio: mean or sum of those of its tokens"""
    behaviour: Behaviour = Behaviour.recomputed
    """log-probs of the policy that sampled: computed by the learner before the step (recomputed), or those that the
    engine sampled with (engine), by which drift is measured
    """
    stale: StaleConfig = field(default_factory=StaleConfig)
    importance_cap: float | None = None
    """behaviour=recomputed: each token's loss times min(pi_behaviour / pi_engine, this), for baselines; null: off"""
    reference_kl: float = 0.0
    """weight of the k3 estimate of KL(policy || reference); 0: no reference is loaded"""
    reference_path: str | None = None
    """model of the frozen reference; null: the model the run starts from"""


@dataclass
class PipelineConfig:
    """Groups of a step: how many, how old, and what becomes of those that are left out."""

    groups_per_step: int = MISSING
    """prompts per step"""
    updates_per_step: int = 2
    """optimiser updates per step, on disjoint parts of it"""
    max_staleness: int = 0
    """steps by which a group's oldest token may lag the weights that train on it; 0 is on-policy"""
    inflight: Inflight = Inflight.keep_recompute
    """responses that are being decoded when new weights are published: they end first (finish), continue with the new
    weights and a recomputed KV cache (keep_recompute), continue with the old KV cache (keep_cache: no single policy has
    their log-probs), are aborted and sent again with their tokens so far (abort_resume), or end with
    the adapter that they began with, beside new ones that begin with the new one (keep_version: with model.lora only)
    """
    tokens_per_micro_batch: int = 16384
    """prompt + response tokens of one forward; a group above it is split, at the price of a second pass"""
    share_prompt: bool = False
    """learner: encode a prompt once for all K responses; needs packed attention"""
    max_attempts: int = 5
    """issues of one prompt in a row that are lost before the run ends with TooManyLost, or that a working verifier
    leaves unscored before the prompt is left out
    """
    max_unscored_share: float = 0.1
    """share of the prompts (of 20 at least) that may be left out as unscored before the run ends"""
    max_gib: float = 8.0
    """memory of the driver for groups that are on their way or wait to be trained"""
    equal_rewards: EqualRewards = EqualRewards.keep
    """groups whose rewards are all equal: train on them (keep), or leave them out (drop)"""
    refill_groups: int | None = None
    """groups of a step that are asked for in place of those left out (equal rewards, objective.stale); then the step is
    trained with what it has. null: groups_per_step
    """
    oversample_groups: int = 0
    """groups on their way beyond those that a step needs; when it has them, what was issued too early for the next step
    is cut, and counted as filtered. Cuts long responses more often than short ones
    """
    reused_groups_per_step: int = 0
    """trained groups, at most max_staleness steps old, that each step trains once more; needs behaviour=engine"""
