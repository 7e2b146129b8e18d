"""Limits of a run beside the forecast: what time is fixed, and whether the longest piece of work fits it.

Limits are on silence, so they are compared with a piece of work and not with the whole: a step of an engine, a
micro-batch, a bucket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lpo_ray.common.silence import ASSURED
from lpo_ray.config.schema import ClusterKind, Config, Inflight
from lpo_ray.run.object_store import LEAST, needed_bytes
from lpo_ray.telemetry.monitor.advice import Setup
from lpo_ray.tools.plan.architecture import Architecture
from lpo_ray.tools.plan.devices import Device
from lpo_ray.tools.plan.memory import BYTES, EngineShape
from lpo_ray.tools.plan.throughput import Rates, StepTime, Work, prefill_seconds

NOTABLE = 0.02
"""share of a step that is worth a note"""
FAST_STORAGE = 1e9
"""bytes a second; a start that needs more is worth a note"""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit, and the longest piece of work that it must leave time for."""

    setting: str
    seconds: float
    """that the setting leaves for the piece"""
    piece: str
    forecast: float
    """seconds that the piece takes"""
    remedy: str

    @property
    def problem(self) -> str | None:
        """Why the run would not last; None: it fits."""
        if self.forecast <= self.seconds:
            return None
        return (
            f"{self.setting} leaves {self.seconds:,.3f} s for {self.piece}, which takes {self.forecast:,.3f} s by this "
            f"forecast: what works would be taken for what hangs; {self.remedy}"
        )


def limits_of(
    config: Config, setup: Setup, model: Architecture, device: Device | None, work: Work, engine: EngineShape,
    rates: Rates, time: StepTime,
) -> list[Limit]:  # fmt: skip
    """Compare every limit that a forecast can say something about. ``device``: with the cores of an engine, None where
    its speed is not known.
    """
    rollout, learner, transport = config.rollout, config.learner, config.transport
    if config.cluster.kind is ClusterKind.inprocess:
        return []
    found = []
    if device is not None:
        waiting = work.prompts * work.group_size * math.ceil(work.prompt_tokens)
        tokens = min(engine.batched_tokens, waiting)
        step = prefill_seconds(model, device, rollout.dtype, tokens, engine.processes)
        found.append(
            _limit("rollout.silence_seconds", ASSURED * rollout.silence_seconds, "the longest step of an engine", step)
        )
    micro_batches = math.ceil(work.positions / setup.world_size / work.tokens_per_micro_batch)
    found += [
        _limit(
            "learner.silence_seconds", ASSURED * learner.silence_seconds, "a micro-batch and its update",
            time.train / max(work.updates, micro_batches), "or lower pipeline.tokens_per_micro_batch",
        ),
        _limit(
            "transport.transfer_seconds", transport.transfer_seconds / (2 if setup.num_workers > 1 else 1),
            "a bucket of weights", min(engine.bucket_bytes, work.weight_bytes) / 1e9 / rates.publish.value,
            "or lower transport.bucket_mib",
        ),
    ]  # fmt: skip
    return found


def _limit(setting: str, seconds: float, piece: str, forecast: float, otherwise: str = "") -> Limit:
    return Limit(setting, seconds, piece, forecast, f"raise {setting}{', ' if otherwise else ''}{otherwise}")


def start_notes(config: Config, model: Architecture) -> Sequence[str]:
    """Say how fast weights must be read for engines and ranks to start in time, where that is a lot."""
    seconds, num_bytes = config.supervision.start_seconds, model.parameters * BYTES[config.model.dtype]
    if num_bytes / seconds < FAST_STORAGE:
        return []
    return [
        f"each engine and rank reads {num_bytes / 1e9:,.0f} GB of weights at its start, for which "
        f"supervision.start_seconds leaves {seconds:,.0f} s: storage must give {num_bytes / seconds / 1e9:.1f} GB a "
        "second, or raise it"
    ]


def inflight_notes(
    config: Config, model: Architecture, device: Device | None, work: Work, engine: EngineShape, slots: int,
    time: StepTime,
) -> Sequence[str]:  # fmt: skip
    """Say what it costs that a publish drops the KV cache of ``slots`` half-decoded responses, where that is a lot."""
    mode = config.pipeline.inflight
    if (
        device is None
        or not config.pipeline.max_staleness
        or mode not in (Inflight.keep_recompute, Inflight.abort_resume)
    ):
        return []
    length = work.prompt_tokens + work.response_tokens / 2
    tokens = slots * length
    seconds = prefill_seconds(model, device, config.rollout.dtype, tokens, engine.processes, length)
    if seconds < NOTABLE * time.step:
        return []
    return [
        f"pipeline.inflight={mode.value} drops the KV cache at each publish: an engine computes that of about "
        f"{tokens:,.0f} tokens again, {seconds:,.1f} s of a step of {time.step:,.1f} s; keep_cache keeps it, and "
        "decodes the rest of those responses on keys and values of the weights before"
    ]


def store_notes(config: Config, store: int | None) -> Sequence[str]:
    """Say what Ray's object store on the driver's machine must hold, where it may be too small. ``store``: its bytes on
    a cluster that the run starts; None: on one that others start.
    """
    needed = needed_bytes(config)
    if config.cluster.kind is ClusterKind.inprocess or needed <= (LEAST if store is None else store):
        return []
    holds = f"the groups of a step, and those that wait, can have {needed / 2**30:.1f} GiB in Ray's object store"
    if store is None:
        return [
            f"{holds} on the driver's node: start it with --object-store-memory={needed} or more, and /dev/shm as "
            "large (RAY_OBJECT_STORE_BYTES and --shm-size of a container); what does not fit goes over its disk"
        ]
    return [
        f"{holds}, which has {store / 2**30:.1f} here: what does not fit goes over the disk. Lower "
        "pipeline.groups_per_step, pipeline.max_staleness or sampling.max_tokens, or give it more with "
        "cluster.object_store_gib, as far as memory and /dev/shm allow"
    ]


def leaving_notes(config: Config, longest_seconds: float) -> Sequence[str]:
    """Say that workers which leave hand back long responses, where workers come and go."""
    seconds = config.rollout.drain_seconds
    if not (config.rollout.autoscale.max or config.cluster.autoscaling) or longest_seconds <= seconds:
        return []
    return [
        f"a worker that leaves has rollout.drain_seconds={seconds:g} to end its groups, and a response of "
        f"sampling.max_tokens takes {longest_seconds:,.0f} s: what is not done is sampled again elsewhere; raise it to "
        "keep that work"
    ]
