"""The environment service: conversations' environments in child processes, and messages turned into tokens.

It dies with all that it hosts. The conversations that it had are lost then, and their groups are issued again: a new
service knows none of them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from actors.control.log_shipping import ship_log
from actors.runtime.cpu_tuning import give_way
from actors.runtime.inspection import current_process
from actors.runtime.start_watch import Startable
from lpo_ray.agents.conversations import EnvironmentSettings, HostedEnvironments
from lpo_ray.common.silence import Progress
from lpo_ray.errors import GroupLost
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import ConversationId, IntArray, Observation, Process, Prompt, Turn
from lpo_ray.tasks.prompt_form import PromptForm
from lpo_ray.tasks.sources.source import PromptEncoder

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MessageSettings:
    """How messages become tokens: what makes a PromptEncoder, beside the tokenizer."""

    template: str
    max_tokens: int
    form: PromptForm


class EnvironmentService(Startable):
    """Service: a plain class that ``roles.py`` makes an actor, with many concurrent calls."""

    def __init__(
        self,
        model_path: str,
        settings: EnvironmentSettings,
        messages: MessageSettings,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        """``model_path``: model whose tokenizer turns messages into tokens."""
        self._model_path, self._trust_remote_code = model_path, trust_remote_code
        self._settings, self._messages = settings, messages
        self._work: dict[ConversationId, asyncio.Future[Any]] = {}
        """what is being done, by conversation: one call at a time"""
        self._answered = itertools.count()

    async def start(self) -> Process:
        """Load the tokenizer, and return where the service runs. Child processes start with what they host."""
        give_way()
        ship_log("environment", "environment service")
        tokenizer = Tokenizer.load(self._model_path, trust_remote_code=self._trust_remote_code)
        encoder = PromptEncoder(tokenizer, self._messages.template, self._messages.max_tokens, self._messages.form)
        self._environments = HostedEnvironments(self._settings, tokenizer, encoder)
        return current_process()

    async def open(self, conversation: ConversationId, prompt: Prompt) -> IntArray:
        """Make the environment of a conversation and return the context of its first turn."""
        return await self._done(conversation, self._environments.open(conversation, prompt))

    async def reply(self, conversation: ConversationId, turn: Turn) -> Observation:
        """Give the environment what the policy said. Raises GroupLost for a conversation that it does not have."""
        return await self._done(conversation, self._environments.reply(conversation, turn))

    async def end(self, conversation: ConversationId) -> None:
        """Forget a conversation, and give up what is being done for it: its caller has."""
        work = self._work.get(conversation)
        if work is not None:
            work.cancel()
            await asyncio.wait({work})
        await self._environments.end(conversation)

    async def progress(self) -> Progress:
        """Say which groups it has. Each of their calls has a limit of its own here, so that it answers at all is a sign
        that it gets on.
        """
        return Progress(next(self._answered), not self._work, frozenset(name.key for name in self._work))

    async def resize(self, processes: int) -> None:
        """Host environments in another number of processes from now on."""
        self._environments.resize(processes)

    async def close(self) -> None:
        """End the child processes."""
        await self._environments.close()

    async def _done(self, conversation: ConversationId, call: Coroutine[Any, Any, T]) -> T:
        """Do one call of a conversation, unless it is ended meanwhile."""
        self._work[conversation] = work = asyncio.ensure_future(call)
        try:
            return await work
        except asyncio.CancelledError:
            raise GroupLost(*conversation.key, f"conversation {conversation.response} was ended") from None
        finally:
            del self._work[conversation]
