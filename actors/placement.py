"""Where actors run: learner ranks together, rollout workers spread; refused early when impossible."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from lpo_ray.errors import ConfigError, DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Request:
    """Bundles of one role."""

    role: str
    bundles: list[dict[str, float]]
    strategy: str


def bundle(cpus: float, gpus: float) -> dict[str, float]:
    """One actor's resources."""
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


def check_capacity(requests: list[Request]) -> None:
    """ConfigError when the whole cluster has less than the roles ask for."""
    have = ray.cluster_resources()
    for resource in ("CPU", "GPU"):
        wanted = {r.role: sum(b.get(resource, 0.0) for b in r.bundles) for r in requests}
        total = sum(wanted.values())
        if total > have.get(resource, 0.0):
            asked = ", ".join(f"{role} {amount:g}" for role, amount in wanted.items() if amount)
            raise ConfigError(
                f"the run asks for {total:g} {resource} ({asked}), the Ray cluster has {have.get(resource, 0.0):g}; "
                "add nodes, or lower rollout.num_workers, learner.world_size or their cpus_per_/gpus_per_ settings"
            )


async def reserve(request: Request, seconds: float) -> PlacementGroup:
    """The role's placement group once its resources are held. Raises DeadlineExceeded naming the role."""
    group = placement_group(request.bundles, strategy=request.strategy)
    try:
        await asyncio.wait_for(_ready(group), timeout=seconds)
    except TimeoutError:
        remove_placement_group(group)
        raise DeadlineExceeded(
            f"the Ray scheduler ({request.role})", f"place {request.bundles} with {request.strategy}", seconds
        ) from None
    return group


async def _ready(group: PlacementGroup) -> None:
    await group.ready()
