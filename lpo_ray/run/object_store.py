"""Size of Ray's object store on the driver's machine: what a step keeps there, and what there is room for."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from lpo_ray.config.schema import Config

GIB = 2**30
LEAST = GIB
"""of a local cluster's store, whatever a step needs"""
TRAVELLING_BYTES = 12
"""of a response's token in the store: token id and log-prob"""
SLACK = 1.25
"""for groups that are with the verifier, and for weights on their way"""
MEMORY_SHARE, SHARED_SHARE = 0.3, 0.8
"""of the machine's memory, as Ray takes by itself, and of its shared memory"""


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of memory of a machine."""

    memory: int
    available: int
    shared: int
    """free in /dev/shm"""


def room_here() -> Room:
    """Look at this machine."""
    memory = psutil.virtual_memory()
    return Room(memory.total, memory.available, shutil.disk_usage(Path("/dev/shm")).free)


def needed_bytes(config: Config) -> int:
    """Bytes that may be in the store of the driver's machine: groups that are in flight or wait, up to
    pipeline.max_gib, and the ranks' shares of one step.
    """
    pipeline, sampling = config.pipeline, config.sampling
    largest = TRAVELLING_BYTES * sampling.group_size * sampling.max_tokens
    step = pipeline.groups_per_step + pipeline.oversample_groups
    held = min(step * (pipeline.max_staleness + 1) * largest, int(pipeline.max_gib * GIB))
    return int(SLACK * (held + (step + pipeline.reused_groups_per_step) * largest))


def object_store_bytes(config: Config, room: Room) -> int:
    """Size of a local cluster's store: cluster.object_store_gib, or what a step needs as far as there is room beside
    the engines' KV caches.
    """
    if config.cluster.object_store_gib is not None:
        return int(config.cluster.object_store_gib * GIB)
    most = MEMORY_SHARE * room.memory, SHARED_SHARE * room.shared, room.available - kv_cache_bytes(config)
    return max(LEAST, int(min(needed_bytes(config), *most)))


def kv_cache_bytes(config: Config) -> int:
    """Memory of the engines' KV caches on the CPUs of a local cluster; 0 where they are on GPUs."""
    rollout = config.rollout
    return 0 if rollout.gpus_per_worker else int(rollout.num_workers * rollout.kv_cache_gib * GIB)
