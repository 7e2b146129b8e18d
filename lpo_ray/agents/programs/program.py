"""Agents as programs: what one is started with, and what runs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.processes.process import Lost, Refused
from lpo_ray.errors import DataError, GroupLost, Unscored
from lpo_ray.records import ConversationId, Finished, Prompt


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Settings of agents: a function, as ``hosted.agent``, or a command."""

    hosted: Hosted
    command: tuple[str, ...] = ()
    """and its arguments; empty: the agent is a function"""
    network: bool = False
    """whether a command may reach more than the endpoint"""
    seed: int = 0

    def with_processes(self, processes: int) -> AgentSettings:
        """Return them for another number of processes."""
        return replace(self, hosted=replace(self.hosted, processes=processes))


@dataclass(frozen=True, slots=True)
class Access:
    """Access of one session to the endpoint."""

    url: str
    """address without a path, such as http://127.0.0.1:41234"""
    key: str = field(repr=False)
    """opens this session and nothing else"""


class Programs(Protocol):
    """Runs agents, each in a session of its own."""

    async def begin(self, conversation: ConversationId, prompt: Prompt) -> None:
        """Wait until there is room for one more agent, and make it ready. Raises GroupLost."""
        ...

    async def run(self, conversation: ConversationId, access: Access) -> Finished:
        """Run it to its end. Raises Unscored for what it does wrong, GroupLost for the end of its process."""
        ...

    async def end(self, conversation: ConversationId) -> str:
        """End an agent, if it still runs. Returns what it printed last, if it did. Never raises."""
        ...


class HostedPrograms(Programs, Protocol):
    """Agents in child processes of this process."""

    def resize(self, processes: int) -> None:
        """Use another number of processes from now on."""
        ...

    async def close(self) -> None:
        """End every process that an agent started. Never raises."""
        ...


@contextlib.contextmanager
def faults_of_agent(conversation: ConversationId) -> Iterator[None]:
    """Raise a fault of an agent as Unscored, and the end of its process as GroupLost."""
    response = f"response {conversation.response}"
    try:
        yield
    except (Refused, DataError) as error:
        raise Unscored(*conversation.key, f"{response}: its agent failed: {error}") from error
    except Lost as error:
        raise GroupLost(*conversation.key, f"{response}: {error}") from error
