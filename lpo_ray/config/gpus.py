"""GPUs of ranks and engines: whole ones, or shares of the same ones. What no placement could make good is refused."""

from __future__ import annotations

from lpo_ray.config.engine import engine_processes, shares_gpus
from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError

SLACK = 1e-6
"""of a GPU, for the sum of two shares"""


def most_engines(config: Config) -> int:
    """Count the engines that find a place on the ranks' GPUs, where they share them."""
    return config.learner.world_size // engine_processes(config.rollout)


def between_gpus(config: Config) -> bool:
    """Whether weights travel from GPU to GPU, not through host memory."""
    whole = min(config.learner.gpus_per_rank, config.rollout.gpus_per_worker) >= 1
    return (whole or shares_gpus(config)) and config.transport.kind in ("auto", "nccl", "cuda_ipc")


def auto_transport(config: Config, num_nodes: int) -> str:
    """Choose the fastest transport that works on all ``num_nodes`` of the cluster, since engines may join anywhere."""
    gpus = config.learner.gpus_per_rank, config.rollout.gpus_per_worker
    if shares_gpus(config):
        return "cuda_ipc"
    if min(gpus) >= 1:
        return "nccl"
    if num_nodes == 1:
        return "shared_memory"
    return "object_store" if any(gpus) else "gloo"


def check_gpus(config: Config) -> None:
    """Check that ranks and engines ask for GPUs that they can use. Raises ConfigError."""
    rank, engine = config.learner.gpus_per_rank, config.rollout.gpus_per_worker
    if rank > 1:
        raise ConfigError(
            f"learner.gpus_per_rank is {rank:g}; expected 0, 1 or a share: a rank computes on one GPU; for more GPUs "
            "raise learner.world_size"
        )
    if shares_gpus(config):
        _check_shares(config)
    elif 0 < rank < 1 and config.learner.world_size > 1:
        raise ConfigError(
            f"learner.gpus_per_rank is {rank:g} with rollout.gpus_per_worker={engine:g}; a rank shares its GPU with an "
            "engine only, never with a rank: set learner.gpus_per_rank=1, or rollout.gpus_per_worker to a share too"
        )


def _check_shares(config: Config) -> None:
    learner, rollout = config.learner, config.rollout
    if learner.gpus_per_rank + rollout.gpus_per_worker > 1 + SLACK:
        raise ConfigError(
            f"learner.gpus_per_rank={learner.gpus_per_rank:g} and rollout.gpus_per_worker={rollout.gpus_per_worker:g} "
            "are shares of one GPU; expected a sum of 1 at most, or 1 for both, which gives each GPUs of its own"
        )
    most = most_engines(config)
    for key, count in (("num_workers", rollout.num_workers), ("autoscale.max", rollout.autoscale.max)):
        if count > most:
            raise ConfigError(
                f"rollout.{key} is {count}, but engines share the GPUs of learner.world_size={learner.world_size} "
                f"ranks, {engine_processes(rollout)} each; expected {most} at most: lower it, or raise "
                "learner.world_size"
            )
    for key in learner.labels.keys() & rollout.labels.keys():
        if learner.labels[key] != rollout.labels[key]:
            raise ConfigError(
                f"learner.labels has {key}={learner.labels[key]} and rollout.labels {key}={rollout.labels[key]}, but "
                "ranks and engines share GPUs, so nodes; expected the same label, or whole GPUs for each"
            )
