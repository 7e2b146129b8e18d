"""What conversations need beside engines, and who conducts them then."""

from __future__ import annotations

from dataclasses import dataclass

from actors.agents.remote import RemoteEnvironments
from actors.agents.remote_agents import RemoteAgents
from actors.runtime.supervised import RestartableActor
from lpo_ray.interfaces import RolloutEngine, TurnEngine
from lpo_ray.rollout.agents import AgentLimits, AgentRollout
from lpo_ray.rollout.conversations import ConversationRollout
from lpo_ray.training.call_store import CallStore


@dataclass(frozen=True, slots=True)
class Conversations:
    """What conversations need beside engines: environments, or agents and the record of their calls."""

    others: RemoteEnvironments | RemoteAgents
    limits: AgentLimits
    record: CallStore | None = None
    """None: what agents were answered is not kept"""

    def with_engine(self, engine: TurnEngine) -> RolloutEngine:
        """Conduct conversations with ``engine``."""
        if isinstance(self.others, RemoteAgents):
            return AgentRollout(engine, self.others, self.limits, self.record)
        return ConversationRollout(engine, self.others, self.limits.most_tokens)

    @property
    def services(self) -> list[RestartableActor]:
        """Actors of those who speak with the policy."""
        return self.others.services if isinstance(self.others, RemoteAgents) else [self.others.service]

    async def close(self) -> None:
        """End the actors. Never raises."""
        await self.others.close()
        if self.record is not None:
            self.record.close()
