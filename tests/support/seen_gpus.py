"""Stand-ins for the actors that need torch: they say which GPUs they would see. Light, since each is a process."""

from __future__ import annotations

import os
from dataclasses import dataclass

import ray

from actors.runtime.inspection import current_process
from lpo_ray.records import Process


@dataclass(frozen=True)
class Seen:
    """An actor's place."""

    node: str
    gpus: str | None
    """CUDA_VISIBLE_DEVICES"""
    accelerator: str | None
    """DS_ACCELERATOR"""
    rank: int | None


@dataclass(frozen=True)
class Pool:
    num_processes: int = 1


@dataclass(frozen=True)
class Service:
    pool: Pool = Pool()


class Actor:
    """Any role's actor."""

    rank: int | None = None

    def __init__(self, *settings: object, **more: object) -> None:
        pass

    def seen(self) -> Seen:
        names = ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")
        return Seen(ray.get_runtime_context().get_node_id(), *map(os.environ.get, names), self.rank)

    def start(self, *_: object) -> Process:
        return current_process()


class Rank(Actor):
    def __init__(self, rank: int, world_size: int, settings: object) -> None:
        self.rank = rank

    def address(self) -> tuple[str, int]:
        return "127.0.0.1", 1


class Engine(Actor):
    async def close(self) -> None:
        pass
