"""Choices that keys have by name."""

from __future__ import annotations

from enum import Enum


class Resume(Enum):
    """Choice for a run folder that exists."""

    never = "never"
    auto = "auto"
    changed = "changed"


class LengthNorm(Enum):
    """Reduction of token log-ratios to a response's log-ratio."""

    mean = "mean"
    sum = "sum"


class Behaviour(Enum):
    """Source of the log-probs that stand for pi_b: the learner's own (recomputed) or those the engine sampled with."""

    recomputed = "recomputed"
    engine = "engine"


class ClipCentre(Enum):
    """Policy that the token clip's band is around: the one before the step (pi_t), or the behaviour (pi_b)."""

    anchor = "anchor"
    behaviour = "behaviour"


class StalePolicy(Enum):
    """Treatment of a group whose behaviour has drifted from the policy: train on it as it is, do not train on it, or
    shrink its anchor.
    """

    keep = "keep"
    drop = "drop"
    temper = "temper"


class EqualRewards(Enum):
    """Treatment of a group whose rewards are all equal. It has no gradient at the first update; at later ones, and when
    it is off-policy, it pulls the policy back to the anchor. So drop it only where that is not wanted.
    """

    keep = "keep"
    drop = "drop"


class Inflight(Enum):
    """Treatment of responses that are being decoded when new weights are published."""

    finish = "finish"
    keep_recompute = "keep_recompute"
    keep_cache = "keep_cache"
    abort_resume = "abort_resume"
    keep_version = "keep_version"


class EngineKind(Enum):
    """Kind of vLLM engine: in-process LLMEngine (CPU), AsyncLLM (GPU), or the one that fits the hardware."""

    auto = "auto"
    inprocess = "inprocess"
    asynchronous = "asynchronous"


class SandboxKind(Enum):
    """Kind of sandbox that holds an untrusted program."""

    auto = "auto"
    bubblewrap = "bubblewrap"
    rlimit = "rlimit"


class ClusterKind(Enum):
    """Backend: Ray actors, or everything in this process (for a debugger)."""

    ray = "ray"
    inprocess = "inprocess"


class ProgressKind(Enum):
    """Progress in the terminal: live panel, one line a step, nothing, or by whether the output is a terminal."""

    auto = "auto"
    live = "live"
    plain = "plain"
    quiet = "quiet"


class Attention(Enum):
    """Layout of responses: packed without padding, in padded rows, or packed where the model's attention allows it."""

    auto = "auto"
    packed = "packed"
    padded = "padded"
