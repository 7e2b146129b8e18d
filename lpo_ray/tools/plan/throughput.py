"""How long a step takes: what it has to do, how fast that goes, and what limits it. Values in, values out.

Rates are of response tokens, as in the ``simulation`` section: of one engine while it samples, and of one learner rank
for everything that a step does with them. They are given, measured in an earlier run, or derived from a device's peak
by the efficiencies below, which are assumptions: none was measured here on a GPU.

Derived sampling. A decode step of n responses reads the weights and the KV cache of n responses, and multiplies
n tokens with the weights; it takes the longer of the two, OVERHEAD, and the device's overhead for each response. No
step is over before its longest response is. Derived training. 2 FLOP for each parameter and token in a forward pass,
4 in a backward pass, causal attention over half the sequence; forward passes beside the update's own as
``learner/updates.py`` makes them; the output head over response tokens, its logits twice. Weights are gathered for
each pass behind the arithmetic; the optimiser comes after. Derived publishing: through host memory, the link and then a
digest on one core. Between GPUs bucket by bucket: while ranks gather the next one, engines receive and load this one;
both put it together and compute digests in their own memory, and calls to all of them go with each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lpo_ray.errors import ConfigError
from lpo_ray.telemetry.monitor.advice import Setup, advise
from lpo_ray.tools.plan.architecture import Architecture
from lpo_ray.tools.plan.devices import Device
from lpo_ray.tools.plan.memory import BYTES, FP32, kv_bytes_per_token

TRAIN_EFFICIENCY = 0.4
"""of peak FLOP/s in packed forward and backward passes, and of a link's bytes while weights are gathered"""
DECODE_EFFICIENCY = 0.6
"""of memory bandwidth while decoding; of peak FLOP/s it is TRAIN_EFFICIENCY"""
SEND_EFFICIENCY = 0.25
"""of a link's bytes while weights are gathered, sent and loaded"""
DIGEST = 2.5e9
"""bytes a second that one process copies to the host and digests"""
PASSES = 16
"""times that the bytes of weights are read or written on each side between GPUs: put together, digested (11), loaded"""
ROUND = 0.01
"""seconds of the calls to ranks and engines for a bucket"""
OVERHEAD = 0.004
"""seconds of a decode step, whatever is in it"""
HOST_LINK = 25e9
"""bytes a second between a GPU and the host's memory, and of AdamW on the host for each rank"""
WARM_UP = 2
"""steps of a run whose times do not count"""


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one step."""

    prompts: int
    group_size: int
    prompt_tokens: float
    """of one prompt, on average"""
    response_tokens: float
    """of one response, on average"""
    longest_tokens: int
    """that a response may have"""
    share_prompt: bool
    """the learner encodes a prompt once for its group"""
    forward_passes: float
    """of the learner over each token without gradient, beside the update's own"""
    updates: int
    tokens_per_micro_batch: int
    weight_bytes: int
    """that are published"""
    said_tokens: float = 0.0
    """of environments, behind the turns of one response, on average"""
    environment_seconds: float = 0.0
    """that environments take in a conversation of as many turns as there may be"""
    adapter: int = 0
    """parameters of the adapter that is trained in place of the model; 0: there is none"""

    @property
    def sampled(self) -> float:
        """Response tokens of the step."""
        return self.prompts * self.group_size * self.response_tokens

    @property
    def positions(self) -> float:
        """Positions of the learner's forward passes: prompts, responses, and what environments said."""
        copies = 1 if self.share_prompt else self.group_size
        said = self.prompts * self.group_size * self.said_tokens
        return self.prompts * copies * self.prompt_tokens + self.sampled + said


@dataclass(frozen=True, slots=True)
class Rate:
    """Speed and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Rates:
    """Speeds of the three parts of a step."""

    sample: Rate
    """response tokens a second of one engine"""
    train: Rate
    """response tokens a second of one rank"""
    publish: Rate
    """GB (10^9 bytes) of weights a second, from the first gather to the last proof"""
    longest_seconds: float = 0.0
    """that sampling takes at least, however many engines there are; 0 where it is not known"""


def engine_rate(
    model: Architecture, device: Device, dtype: str, work: Work, parts: int, slots: int
) -> tuple[float, float]:
    """Response tokens a second of an engine on ``parts`` devices that decodes ``slots`` responses at once, and the
    seconds that its longest response takes among as many.
    """
    seconds = _decode_step(model, device, dtype, work, parts, slots)
    once = work.prompt_tokens / work.group_size + work.said_tokens  # a prompt once for a group, turns from the cache
    flops = 2 * (model.body + model.embedding) * once
    prefill = flops / (TRAIN_EFFICIENCY * device.flops(dtype) * parts)
    rate = 1 / (seconds / slots + prefill / work.response_tokens)
    longest = work.longest_tokens * _decode_step(model, device, dtype, work, parts, 1)
    return rate, longest + work.environment_seconds


def _decode_step(model: Architecture, device: Device, dtype: str, work: Work, parts: int, slots: int) -> float:
    """Seconds in which each of ``slots`` responses, half grown on average, gets one token."""
    weights = model.body + model.embedding
    held = work.prompt_tokens + (work.response_tokens + work.said_tokens) / 2
    cached = slots * held * kv_bytes_per_token(model, dtype, parts)
    reading = (BYTES[dtype] * weights / parts + cached) / (DECODE_EFFICIENCY * device.bandwidth)
    computing = 2 * weights * slots / parts / (TRAIN_EFFICIENCY * device.flops(dtype))
    return max(reading, computing) + OVERHEAD + slots * device.per_response


def publish_rate(device: Device, *, between_gpus: bool, world_size: int, weight_bytes: int, bucket_bytes: int) -> float:
    """GB of weights a second, from ``world_size`` ranks to engines."""
    if not between_gpus:
        return 1e-9 / (1 / (SEND_EFFICIENCY * device.link) + 1 / DIGEST)
    moving = weight_bytes / (SEND_EFFICIENCY * device.link)
    working = PASSES * weight_bytes / (DECODE_EFFICIENCY * device.bandwidth)
    rounds = math.ceil(weight_bytes / bucket_bytes)
    gathering = moving * (world_size - 1) / world_size + working  # at most what receiving takes, so behind it
    return weight_bytes / 1e9 / (moving + working + gathering / rounds + rounds * ROUND)


def prefill_seconds(
    model: Architecture, device: Device, dtype: str, tokens: float, parts: int, length: float = 0.0
) -> float:
    """Seconds in which an engine computes the KV cache of ``tokens`` positions, of sequences of ``length``."""
    attention = 2 * model.num_layers * model.num_heads * model.head_dim * length
    flops = (2 * (model.body + model.embedding) + attention) * tokens
    return flops / (TRAIN_EFFICIENCY * device.flops(dtype) * parts)


def rank_rate(
    model: Architecture, device: Device, dtype: str, work: Work, *, world_size: int, checkpointing: bool, offload: bool
) -> float:
    """Response tokens a second of one of ``world_size`` ranks, over all updates of a step."""
    sequence = work.prompt_tokens + work.response_tokens + work.said_tokens
    attention = 2 * model.num_layers * model.num_heads * model.head_dim * sequence
    forward = (2 * model.body + attention) * work.positions
    head = 2 * model.embedding * work.sampled
    to_weights = 0 if work.adapter else 1  # as much as a forward pass: frozen weights have no gradient
    flops = forward * (2 + to_weights + checkpointing + work.forward_passes)
    flops += head * (3 + to_weights + work.forward_passes)
    computing = flops / world_size / (TRAIN_EFFICIENCY * device.flops(dtype))
    micro_batches = max(work.updates, math.ceil(work.positions / world_size / work.tokens_per_micro_batch))
    passes = 2 + to_weights + checkpointing + work.forward_passes  # weights for forward and backward, gradients once
    moved = passes * micro_batches * BYTES[dtype] * model.parameters * (world_size - 1) / world_size
    share = (work.adapter or model.parameters) / world_size
    touched = (2 * 3 * FP32 + 2 * BYTES[dtype]) * share  # master weights, moments: read, written; weights, gradients
    optimiser = work.updates * touched / (HOST_LINK if offload else DECODE_EFFICIENCY * device.bandwidth)
    seconds = max(computing, moved / (TRAIN_EFFICIENCY * device.link)) + optimiser
    return work.sampled / world_size / seconds


def forward_passes(updates: int, *, from_engine: bool, around_anchor: bool, reference: bool) -> float:
    """Forward passes over each token that a step makes without gradient, on average: the anchor, the policy before the
    step for updates after the first, the reference. Groups that are split over micro-batches, which take one more after
    the first update, are not counted.
    """
    later = (updates - 1) / updates
    before = later if around_anchor or not from_engine else 0.0
    return before + from_engine + reference


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step."""

    sample: float
    train: float
    """anchor and projection"""
    publish: float
    step: float
    lane: str
    """which of the two lanes the other waits for: "sampling" or "learning" """
    advice: str | None
    """from telemetry.monitor.advice"""


def step_time(work: Work, rates: Rates, setup: Setup) -> StepTime:
    """Lanes take turns when on-policy and overlap otherwise; both stand still while weights are published. Verifying is
    not in it: it happens behind sampling unless it is slow.
    """
    sample = max(work.sampled / (setup.num_workers * rates.sample.value), rates.longest_seconds)
    train = work.sampled / (setup.world_size * rates.train.value)
    publish = work.weight_bytes / 1e9 / rates.publish.value
    step = (max(sample, train) if setup.max_staleness else sample + train) + publish
    engines = {"sample": sample / step, "verify": 0.0, "wait": (step - sample - publish) / step}
    learner = {"project": train / step, "anchor": 0.0, "wait": (step - train - publish) / step}
    lane = "sampling" if sample >= train else "learning"
    return StepTime(sample, train, publish, step, lane, advise(engines, learner, setup))


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians over the steps of an earlier run."""

    rates: Rates
    response_tokens: float
    step_seconds: float
    steps: int


def measured_in(folder: Path, *, num_workers: int, world_size: int) -> Measured:
    """Measure the run in ``folder``, which had ``num_workers`` engines and ``world_size`` ranks. Raises ConfigError.

    Busy times of each lane, so that a run whose lanes overlapped says the same. Verifying counts as sampling, as the
    engines have nothing to sample then.
    """
    rows = _metrics(folder)[WARM_UP:]
    if not rows:
        raise ConfigError(
            f"--from-run {folder} has no step after the first {WARM_UP}; expected a run that has done at least "
            f"{WARM_UP + 1} steps"
        )
    try:
        sample = median(r["tokens"] / (r["seconds"] * (r["engines_sample"] + r["engines_verify"])) for r in rows)
        train = median(r["tokens"] / (r["seconds"] * (r["learner_project"] + r["learner_anchor"])) for r in rows)
        publish = median(r["publish_gb_per_second"] for r in rows)
        length, seconds = median(r["response_length"] for r in rows), median(r["seconds"] for r in rows)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"--from-run {folder}: its metrics.jsonl lacks a number that plan needs ({error}); expected one that this "
            "version wrote"
        ) from error
    source = f"measured in {folder} ({len(rows)} steps)"
    rates = Rates(Rate(sample / num_workers, source), Rate(train / world_size, source), Rate(publish, source))
    return Measured(rates, length, seconds, len(rows))


def _metrics(folder: Path) -> list[Mapping[str, float]]:
    file = folder / "metrics.jsonl"
    try:
        return [json.loads(line) for line in file.read_text().splitlines()]
    except FileNotFoundError:
        raise ConfigError(f"--from-run {folder} has no metrics.jsonl; expected the folder of a run") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--from-run: {file} cannot be read: {error}; expected one JSON object a line") from error
