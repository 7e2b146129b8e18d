"""Draining nodes (spot instances with notice, an autoscaler that shrinks): their workers leave in time."""

from __future__ import annotations

import asyncio
import time

from ray._private.state import state as cluster_state  # no public API of Ray lists draining nodes
from ray.exceptions import RaySystemError

from actors.rollout.remote import RemoteWorker
from lpo_ray.interfaces import Events
from lpo_ray.rollout.pool import RolloutPool

PERIOD = 5.0
"""seconds between two checks"""


async def watch_nodes(pool: RolloutPool[RemoteWorker], events: Events) -> None:
    """Have the pool vacate draining nodes, until cancelled."""
    known: set[str] = set()
    while True:
        try:
            draining = await asyncio.to_thread(cluster_state.get_draining_nodes)
        except RaySystemError as error:
            events.note(f"the cluster does not say which nodes are draining: {error}")
            draining = {}
        for node_id, deadline in draining.items():
            if node_id not in known:
                known.add(node_id)
                left = f" in {deadline / 1000 - time.time():.0f} s" if deadline else ""
                pool.vacate([node_id], f"its node {node_id[:8]} goes{left}")
        await asyncio.sleep(PERIOD)
