"""Queries to a run from inside its cluster: ``python -m actors.control.queries JSON`` is the job that sends one.

Queries: {"run": R, "kind": "status"}, {"run": R, "kind": "why"}, {"run": R, "kind": "scale", "role": "rollout",
"count": 2}. The answer is one line of JSON, {"error": TEXT} when there is none.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Mapping

from ray.actor import ActorProxy

from actors.control.run_control import ANSWER_SECONDS, CALL_SECONDS, RunControl, control_name, find
from actors.runtime.connection import joined
from actors.runtime.inspection import inspect
from actors.runtime.remote_calls import call
from lpo_ray.errors import ConfigError, LpoRayError
from lpo_ray.telemetry.monitor.why import place, processes_of

ANSWER = "LPO-RAY-ANSWER "
"""prefix of the line that has the answer"""


async def answer(query: Mapping[str, object]) -> dict[str, object]:
    """Ask the run's control actor, on the cluster that this process is connected to."""
    run, kind = str(query["run"]), query["kind"]
    handle, who = find(run), control_name(run)
    if kind == "status":
        return {"status": await _status(handle, who)}
    if kind == "why":
        status = await _status(handle, who)
        processes = processes_of(status)
        texts = await asyncio.gather(*(inspect(process) for process in processes))
        return {"status": status, "seen": dict(zip(map(place, processes), texts, strict=True))}
    if kind == "scale":
        order = handle.order.remote(str(query["role"]), int(str(query["count"])))
        return {"answer": await call(order, who=who, what="scale", seconds=ANSWER_SECONDS + CALL_SECONDS)}
    raise ConfigError(f"a query of kind {kind!r}; expected status, why or scale")


async def _status(handle: ActorProxy[RunControl], who: str) -> dict[str, object]:
    return await call(handle.status.remote(), who=who, what="status", seconds=CALL_SECONDS)


def ask_here(address: str, query: Mapping[str, object]) -> dict[str, object]:
    """Join the cluster at ``address``, of which this machine is a node, for one query."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    with joined(address, "the run's cluster", "lpo-ray-queries"):
        return asyncio.run(answer(query))


def main() -> None:
    """Entry point of the job that answers one query."""
    try:
        found = ask_here("auto", json.loads(sys.argv[1]))
    except LpoRayError as error:
        found = {"error": str(error)}
    sys.stdout.write(f"\n{ANSWER}{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
