"""Forecast of a run before anything starts: memory, time of a step, places, what does not fit.

``make_forecast`` puts memory, throughput and machines together for one run on one cluster. Nothing is started.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lpo_ray.config.engine import engine_processes, memory_utilization
from lpo_ray.config.gpus import between_gpus
from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError
from lpo_ray.learner.settings import offloads
from lpo_ray.run.numbers import numbers
from lpo_ray.run.object_store import object_store_bytes, room_here
from lpo_ray.run.resolved import resolved
from lpo_ray.run.settings import gradient_checkpointing, setup_of
from lpo_ray.run.spec import RunSpec
from lpo_ray.telemetry.monitor.advice import Setup
from lpo_ray.tools.plan.architecture import Architecture
from lpo_ray.tools.plan.devices import CPU, Device
from lpo_ray.tools.plan.limits import Limit, inflight_notes, leaving_notes, limits_of, start_notes, store_notes
from lpo_ray.tools.plan.machines import Machine, Placement
from lpo_ray.tools.plan.memory import (
    GIB,
    EngineShape,
    KvCache,
    Memory,
    engine_kv_bytes,
    engine_memory,
    kv_cache,
    rank_memory,
)
from lpo_ray.tools.plan.problems import (
    context_problems,
    device_problems,
    host_problems,
    kv_problems,
    parallel_problems,
    placement_remedy,
    unmet_here,
)
from lpo_ray.tools.plan.requirements import (
    Lengths,
    engine_of,
    mean_lengths,
    places_on,
    rank_of,
    step_work,
    with_longest_prompt,
)
from lpo_ray.tools.plan.throughput import Rate, Rates, StepTime, Work, engine_rate, publish_rate, rank_rate, step_time


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Values that a user gives for the run; None: measured, or assumed."""

    prompt_tokens: float | None = None
    response_tokens: float | None = None
    sample_rate: float | None = None
    """response tokens a second of one engine"""
    train_rate: float | None = None
    """response tokens a second of one rank"""
    publish_rate: float | None = None
    """GB of weights a second"""
    measured: Rates | None = None
    """of an earlier run"""
    turns: float | None = None
    """of a conversation, on average"""
    environment_seconds: float | None = None
    """behind a turn, on average"""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Forecast of a run on one cluster."""

    spec: RunSpec
    model: Architecture
    machines: Sequence[Machine]
    device: Device | None
    """that the times are of; None: not in the table"""
    lengths: Lengths
    work: Work
    rank: Memory
    engine: Memory
    kv: KvCache
    slots: int
    """responses that an engine decodes at once"""
    places: Sequence[Placement]
    rates: Rates | None
    time: StepTime | None
    limits: Sequence[Limit]
    """that the times can be compared with"""
    problems: Sequence[str]
    """each a reason why the run would not start, or not last"""
    notes: Sequence[str]

    @property
    def responses_at_most_length(self) -> int:
        """Responses of the most tokens there may be, prompt included, that fit one engine's KV cache."""
        longest = self.lengths.prompt + self.work.longest_tokens
        return self.kv.responses(self.spec.longest_response if self.spec.has_turns else longest)

    @property
    def responses_expected(self) -> int:
        """Responses of the expected length that fit one engine's KV cache."""
        return self.kv.responses(self.lengths.prompt + self.lengths.behind)

    def to_json(self) -> dict[str, object]:
        """Return all numbers; bytes as bytes, times in seconds."""
        time, rates = self.time, self.rates
        return {
            "cluster": [
                {
                    "name": m.name,
                    "cpus": _finite(m.cpus),
                    "gpus": m.gpus,
                    "device": m.device.name if m.device else None,
                    "memory_gib": _finite(m.memory_gib),
                }
                for m in self.machines
            ],
            "model": dataclasses.asdict(self.model),
            "derived": numbers(self.spec),
            "resolved": {row.key: {"value": row.value, "from": row.source} for row in resolved(self.spec)},
            "learner_rank_bytes": dict(self.rank.device),
            "learner_rank_host_bytes": dict(self.rank.host),
            "learner_save_bytes": self.rank.save,
            "learner_rank_total_bytes": self.rank.total,
            "engine_bytes": dict(self.engine.device),
            "engine_total_bytes": self.engine.total,
            "kv_bytes_per_token": self.kv.bytes_per_token,
            "kv_bytes": self.kv.num_bytes,
            "kv_tokens": self.kv.tokens,
            "kv_responses_at_most_length": self.responses_at_most_length,
            "kv_responses_expected": self.responses_expected,
            "prompt_tokens": self.lengths.prompt,
            "response_tokens": self.lengths.response,
            "lengths_from": self.lengths.source,
            "turns": self.lengths.turns,
            "environment_tokens": self.lengths.said,
            "environment_seconds": self.lengths.environment_seconds,
            "sampled_tokens_per_step": self.work.sampled,
            "learner_positions_per_step": self.work.positions,
            "weight_bytes_per_step": self.work.weight_bytes,
            "rates": None if rates is None else dataclasses.asdict(rates),
            "seconds": None if time is None else dataclasses.asdict(time),
            "limits": [dataclasses.asdict(limit) for limit in self.limits],
            "places": [dataclasses.asdict(where) for where in self.places],
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def make_forecast(spec: RunSpec, model: Architecture, machines: Sequence[Machine], given: Assumptions) -> Forecast:
    """Forecast a run on ``machines``. What does not fit is in ``problems``. Raises ConfigError only for what ``given``
    says wrongly.
    """
    config, setup = spec.config, setup_of(spec.config)
    problems: list[str] = []
    notes = unmet_here(config, spec.verifier)
    lengths = mean_lengths(spec, given.prompt_tokens, given.response_tokens, given.turns, given.environment_seconds)
    spec = with_longest_prompt(spec, lengths)
    work = step_work(spec, model, lengths)
    rank_settings, engine_settings = rank_of(spec, model, lengths), engine_of(spec, model)
    rank, engine = rank_memory(model, rank_settings), engine_memory(model, engine_settings)
    found = places_on(config, machines)
    places = [] if isinstance(found, str) else found
    if isinstance(found, str):
        problems.append(f"{found}; {placement_remedy(config)}")
    device = _slowest(machines, places, on_gpu=engine_settings.on_gpu)
    kv = _kv(config, model, engine_settings, device)
    problems += context_problems(config, spec.context, lengths)
    problems += parallel_problems(config, model, machines)
    if device is not None:
        problems += device_problems(config, model, rank_settings, engine_settings, machines, places, device)
        problems += kv_problems(config, spec.max_model_len, model, engine_settings, kv, device)
    else:
        notes.append("the GPUs are not in tools/plan/devices.py: whether it fits is not known, and times need rates")
    problems += host_problems(config, rank, engine, machines, places)
    at_most = min(config.rollout.max_num_seqs, math.ceil(work.prompts * work.group_size / setup.num_workers))
    slots = max(1, min(at_most, kv.responses(lengths.prompt + lengths.behind)))
    rates = _rates(config, setup, model, device, work, slots, engine_settings.bucket_bytes, given, notes)
    time = None if rates is None else step_time(work, rates, setup)
    limits: Sequence[Limit] = []
    notes += start_notes(config, model)
    is_here = not config.cluster.address and len(machines) == 1 and math.isfinite(machines[0].memory_gib)
    notes += store_notes(config, object_store_bytes(config, room_here()) if is_here else None)
    if rates is not None and time is not None:
        engine_device = None if device is None else _times(device, config.rollout.threads if device is CPU else 1)
        limits = limits_of(config, setup, model, engine_device, work, engine_settings, rates, time)
        problems += [limit.problem for limit in limits if limit.problem]
        notes += inflight_notes(config, model, engine_device, work, engine_settings, slots, time)
        notes += leaving_notes(config, work.longest_tokens * slots / rates.sample.value)
    if slots < at_most:
        notes.append(
            f"{slots} responses fit an engine's KV cache at the expected length, rollout.max_num_seqs is "
            f"{config.rollout.max_num_seqs}: more wait, or are computed again"
        )
    return Forecast(
        spec, model, machines, device, lengths, work, rank, engine, kv, slots, places, rates, time, limits, problems,
        notes,
    )  # fmt: skip


def _slowest(machines: Sequence[Machine], places: Sequence[Placement], *, on_gpu: bool) -> Device | None:
    """Find the slowest device with a part in the run, or of all where nothing has a place. None: one is not known."""
    if not on_gpu:
        return CPU
    used = {where.machine for where in places if where.devices} or {i for i, m in enumerate(machines) if m.gpus}
    found = [machines[index].device for index in sorted(used)]
    if not found or None in found:
        return None
    return min((device for device in found if device is not None), key=lambda device: (device.bf16, device.bandwidth))


def _kv(config: Config, model: Architecture, engine: EngineShape, device: Device | None) -> KvCache:
    rollout = config.rollout
    if engine.on_gpu and device is not None:
        return kv_cache(model, engine, device.memory_gib, memory_utilization(rollout))
    per_token = engine_kv_bytes(model, engine)
    return KvCache(0 if engine.on_gpu else int(rollout.kv_cache_gib * GIB), per_token)


def _rates(
    config: Config,
    setup: Setup,
    model: Architecture,
    device: Device | None,
    work: Work,
    slots: int,
    bucket_bytes: int,
    given: Assumptions,
    notes: list[str],
) -> Rates | None:
    """Take given rates before measured before derived ones. None: the device is unknown, and not all are given."""
    learner, rollout = config.learner, config.rollout
    derived: tuple[float, float, float] | None = None
    longest = 0.0
    if device is not None:
        cores = (1, 1) if device is not CPU else (rollout.threads, learner.threads or 1)
        sample, longest = engine_rate(
            model, _times(device, cores[0]), rollout.dtype, work, engine_processes(rollout), slots
        )
        train = rank_rate(
            model, _times(device, cores[1]), config.model.dtype, work, world_size=setup.world_size,
            checkpointing=gradient_checkpointing(config), offload=offloads(learner.deepspeed, "offload_optimizer"),
        )  # fmt: skip
        publish = publish_rate(
            device, between_gpus=between_gpus(config), world_size=setup.world_size, weight_bytes=work.weight_bytes,
            bucket_bytes=bucket_bytes,
        )  # fmt: skip
        derived = (sample, train, publish)
    said = (given.sample_rate, given.train_rate, given.publish_rate)
    measured = given.measured
    chosen: list[Rate] = []
    for number, (name, value) in enumerate(zip(("sample", "train", "publish"), said, strict=True)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"--{name}-rate is {value:g}; expected a number above 0")
        if value is not None:
            chosen.append(Rate(value, "given"))
        elif measured is not None:
            chosen.append((measured.sample, measured.train, measured.publish)[number])
        elif derived is not None and device is not None:
            chosen.append(Rate(derived[number], f"derived from {device.name}'s peak, not measured"))
        else:
            notes.append(f"no time: the GPUs' speed is not known; give --{name}-rate, or --from-run")
            return None
    if given.sample_rate is not None or measured is not None:
        longest = 0.0
    return Rates(*chosen, longest_seconds=longest)


def _times(device: Device, cores: int) -> Device:
    return replace(device, bf16=device.bf16 * cores, fp32=device.fp32 * cores, bandwidth=device.bandwidth * cores)


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value
