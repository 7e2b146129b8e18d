"""Processes of actors: looked at and ended, on whichever node they run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil
import ray
from ray.actor import ActorProxy
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lpo_ray.records import Process
from lpo_ray.telemetry.monitor.process_state import SECONDS, describe, found_alive, this_process

DISMISS_SECONDS = 2.0
"""for processes to end after Ray was told to end them"""


def current_process() -> Process:
    """Process of the calling actor."""
    return this_process(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address())


async def inspect(process: Process) -> str:
    """Describe state, stack and last log lines in a few lines. Never raises, and takes at most ``SECONDS``."""
    if process.node_id == ray.get_runtime_context().get_node_id():
        return await asyncio.to_thread(describe, process)
    where = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
    reference = ray.remote(describe).options(num_cpus=0, scheduling_strategy=where).remote(process)
    try:
        return await asyncio.wait_for(asyncio.wrap_future(reference.future()), SECONDS)
    except (RayError, TimeoutError) as error:
        return f"process {process.pid} on {process.host} cannot be inspected: {type(error).__name__}"


async def dismiss(handles: Sequence[ActorProxy[Any]], processes: Sequence[Process]) -> None:
    """Have Ray end actors, and wait until their processes on this host are gone, DISMISS_SECONDS at most. Ray prints an
    error for an actor that ends otherwise. One that is stopped (SIGSTOP) is left to ``end``.
    """
    here = ray.get_runtime_context().get_node_id()
    leaving = []
    for process in processes:
        if process.node_id == here and (found := found_alive(process)) is not None:
            leaving.append(found)
    for handle in handles:
        ray.kill(handle)  # pyright: ignore[reportArgumentType] - an ActorProxy is an ActorHandle at run time
    await asyncio.to_thread(psutil.wait_procs, leaving, DISMISS_SECONDS)


def end(process: Process) -> None:
    """Send SIGKILL, which also ends a stopped process, if it runs on this host; Ray ends those elsewhere."""
    if process.node_id == ray.get_runtime_context().get_node_id():
        found = found_alive(process)
        with suppress(psutil.Error):
            if found is not None:
                found.kill()
