"""Agents that are functions, in a pool of child processes (``environments/solving.py`` is within them)."""

from __future__ import annotations

import json
from dataclasses import replace

from typing_extensions import override

from lpo_ray.agents.conversations import row_of, verdict_of_answer
from lpo_ray.agents.processes.pool import EnvironmentPool
from lpo_ray.agents.programs.program import Access, AgentSettings, HostedPrograms, faults_of_agent
from lpo_ray.common.seeds import derive_seed
from lpo_ray.records import ConversationId, Finished, Prompt

UNLIMITED = 1e9
"""seconds: whoever conducts a session knows how long its agent waits for answers, and ends it"""


class AgentFunctions(HostedPrograms):
    """Runs one function for every session. Lives in one event loop."""

    def __init__(self, settings: AgentSettings) -> None:
        hosted = replace(settings.hosted, turn_seconds=UNLIMITED, conversation_seconds=UNLIMITED)
        self._pool, self._seed = EnvironmentPool(hosted), settings.seed

    @override
    async def begin(self, conversation: ConversationId, prompt: Prompt) -> None:
        with faults_of_agent(conversation):
            await self._pool.open(
                _name(conversation), prompt.prompt_id, row_of(prompt), derive_seed(self._seed, *conversation)
            )

    @override
    async def run(self, conversation: ConversationId, access: Access) -> Finished:
        name, given = _name(conversation), json.dumps({"url": access.url, "key": access.key})
        with faults_of_agent(conversation):
            answer = await self._pool.step(name, given, given, is_plain=True)
            messages = answer["messages"]
            output = str(messages[-1]["content"]) if messages else None
            return Finished(verdict_of_answer(answer["verdict"]), output, self._pool.last_words(name))

    @override
    async def end(self, conversation: ConversationId) -> str:
        name = _name(conversation)
        last_words = await self._pool.cancel(name, "its session was ended")
        self._pool.end(name)
        return last_words

    @override
    def resize(self, processes: int) -> None:
        self._pool.resize(processes)

    @override
    async def close(self) -> None:
        await self._pool.close()


def _name(conversation: ConversationId) -> str:
    return "/".join(map(str, conversation))
