"""One request of an agent on its way through the server: what the gate knows of it, and what became of it."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass

from lpo_ray.agents.contexts.asked import Asked
from lpo_ray.agents.contexts.histories import Placed, Reply
from lpo_ray.agents.endpoint.api_errors import ApiError
from lpo_ray.agents.endpoint.requests import Api
from lpo_ray.agents.endpoint.sessions import Session
from lpo_ray.records import Turn


@dataclass(slots=True, eq=False)
class Exchange:
    """A request between gate and server. What is None is not known yet."""

    session: Session
    api: Api
    seed: int | None = None
    overridden: tuple[str, ...] = ()
    asked: Asked | None = None
    placed: Placed | None = None
    turn: Turn | None = None
    reply: Reply | None = None
    error: ApiError | None = None
    """what the agent is told in place of any reply"""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the reply: which weights answered, and what the run decided in place of the agent."""
        found = []
        if self.turn is not None and len(self.turn.versions):
            first, last = int(self.turn.versions.min()), int(self.turn.versions.max())
            found.append((b"x-lpo-ray-weights", (f"{first}" if first == last else f"{first}-{last}").encode()))
        if self.overridden:
            found.append((b"x-lpo-ray-overridden", ", ".join(self.overridden).encode()))
        return found


EXCHANGE: contextvars.ContextVar[Exchange] = contextvars.ContextVar("exchange")
