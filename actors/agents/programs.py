"""The agent service: programs of agents in child processes, apart from driver and engines.

It dies with all that it runs. The sessions that it had are lost then, and their groups are issued again.
"""

from __future__ import annotations

import itertools

from actors.control.log_shipping import ship_log
from actors.runtime.cpu_tuning import give_way
from actors.runtime.inspection import current_process
from actors.runtime.start_watch import Startable
from lpo_ray.agents.programs.commands import AgentCommands
from lpo_ray.agents.programs.functions import AgentFunctions
from lpo_ray.agents.programs.program import Access, AgentSettings, HostedPrograms
from lpo_ray.common.held import Held
from lpo_ray.common.silence import Progress
from lpo_ray.records import ConversationId, Finished, Key, Process, Prompt


class AgentService(Startable):
    """Service: a plain class that ``roles.py`` makes an actor, with many concurrent calls."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._groups = Held[Key]()
        self._answered = itertools.count()

    async def start(self) -> Process:
        """Return where the service runs. Child processes start with what they run."""
        give_way()
        ship_log("agent", "agent service")
        kind = AgentCommands if self._settings.command else AgentFunctions
        self._programs: HostedPrograms = kind(self._settings)
        return current_process()

    async def begin(self, conversation: ConversationId, prompt: Prompt) -> None:
        """Wait until there is room for one more agent, and make it ready."""
        with self._groups.during(conversation.key):
            await self._programs.begin(conversation, prompt)

    async def run(self, conversation: ConversationId, access: Access) -> Finished:
        """Run an agent to its end. Raises GroupLost for one that did not begin here."""
        with self._groups.during(conversation.key):
            return await self._programs.run(conversation, access)

    async def end(self, conversation: ConversationId) -> str:
        """End an agent, if it still runs. Returns what it printed last, if it did."""
        return await self._programs.end(conversation)

    async def progress(self) -> Progress:
        """Say which groups it has. Whoever conducts them knows how long an agent may take, so that this is answered at
        all is a sign that it gets on.
        """
        return Progress(next(self._answered), not self._groups, frozenset(self._groups))

    async def resize(self, processes: int) -> None:
        """Run agents in another number of processes from now on."""
        self._programs.resize(processes)

    async def close(self) -> None:
        """End the child processes."""
        await self._programs.close()
