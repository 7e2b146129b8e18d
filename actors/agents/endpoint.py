"""The endpoint that agents ask: a server on one address, whose sessions someone else conducts.

```
 agent ──HTTP──▶ gate ──▶ vLLM's server ──▶ Answers ──▶ Session ──next──▶ conductor
                                                           ◀──────answer──────
```
A new endpoint after a death listens at the same address. Its sessions are opened again with what was recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from typing_extensions import override

from actors.agents.gate import Gate
from actors.control.log_shipping import ship_log
from actors.runtime.cpu_tuning import give_way
from actors.runtime.inspection import current_process
from actors.runtime.start_watch import Startable
from lpo_ray.agents.contexts.histories import Prompts, Style
from lpo_ray.agents.endpoint.doorway import enter, listen
from lpo_ray.agents.endpoint.requests import Rules
from lpo_ray.agents.endpoint.sessions import Sessions
from lpo_ray.agents.endpoint.settings import EndpointSettings
from lpo_ray.agents.tools.calls import parser_for
from lpo_ray.common.silence import Progress
from lpo_ray.errors import ConfigError
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import Answered, Call, ConversationId, Process, Refusal, Turn

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TORCHDYNAMO_DISABLE": "1",
}  # fmt: skip
"""environment of its process: it computes nothing"""
KEEP_ALIVE = 75
"""seconds that a connection without requests stays open: longer than clients keep theirs, which then break it off"""
CLOSE_SECONDS = 5.0


class Server(uvicorn.Server):
    """Server that leaves signals to whoever runs it."""

    @contextlib.contextmanager
    @override
    def capture_signals(self) -> Iterator[None]:
        yield


class Endpoint:
    """An endpoint in this process and event loop."""

    def __init__(self, settings: EndpointSettings, sessions: Sessions | None = None) -> None:
        self._settings = settings
        self.sessions = Sessions(settings.limits) if sessions is None else sessions
        self.address = ""
        """http://HOST:PORT"""

    async def start(self) -> None:
        """Listen. Raises ConfigError for a model that cannot be asked, or an address that is taken."""
        from actors.agents.serving import make_app  # it imports vLLM

        settings = self._settings
        tokenizer = Tokenizer.load(settings.model_path, trust_remote_code=settings.trust_remote_code)
        if not settings.plain and not tokenizer.has_template(settings.style):
            raise ConfigError(
                f"the tokenizer of {settings.model_path} has no chat template, which agents' messages need; name a "
                "file of one as task.chat_template, or set task.template=plain"
            )
        parser = settings.tool_parser
        if parser == "auto":
            parser = parser_for(None if settings.plain else tokenizer.template_text(settings.style))
        rules = Rules(settings.sampling, settings.most_tokens, overrides=settings.overrides)
        app = await make_app(
            settings.model_path,
            Prompts(tokenizer, Style(settings.style, settings.plain)),
            most_tokens=settings.most_tokens,
            model_name=rules.model,
            tool_parser=None if settings.plain else parser,
            reasoning_parser=settings.reasoning_parser,
            ends=frozenset(settings.sampling.stop_token_ids),
            trust_remote_code=settings.trust_remote_code,
        )
        gate = Gate(app, self.sessions, rules, settings.limits, settings.patience_seconds)
        listening = _listening(settings)
        self.address = f"http://{settings.host}:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            gate, log_config=None, log_level="critical", access_log=False, lifespan="off", server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
        )  # fmt: skip
        self._server = Server(config)
        self._serving = asyncio.create_task(self._server.serve([listening]))

    async def close(self) -> None:
        """Stop listening. Whoever waits is told that the session has ended."""
        self.sessions.close()
        self._server.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._serving


class EndpointService(Startable):
    """Endpoint as an actor: a plain class that ``roles.py`` makes one, with many concurrent calls."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._looks = itertools.count()

    async def start(self) -> Process:
        """Listen, and return where the service runs."""
        give_way()
        ship_log("endpoint", "agents' endpoint")
        self._endpoint = Endpoint(self._settings)
        await self._endpoint.start()
        return current_process()

    async def address(self) -> str:
        """Return http://HOST:PORT; OpenAI's clients want /v1 behind it, Anthropic's do not."""
        return self._endpoint.address

    async def open(self, conversation: ConversationId, key: str, recorded: Sequence[Answered] = ()) -> None:
        """Open a session whose agent has this key. ``recorded``: calls of it that were answered before."""
        await self._endpoint.sessions.open(conversation, key, recorded)

    async def next(self, conversation: ConversationId) -> Call:
        """Wait for the next call that needs an answer. Raises GroupLost when there is no such session, or its end."""
        return await self._endpoint.sessions.of(conversation).next()

    async def answer(self, conversation: ConversationId, number: int, answer: Turn | Refusal) -> None:
        """Answer a call. The first answer counts; one that nobody waits for is ignored."""
        self._endpoint.sessions.answer(conversation, number, answer)

    async def end(self, conversation: ConversationId) -> None:
        """End a session: its key opens nothing from now on."""
        self._endpoint.sessions.end(conversation)

    async def progress(self) -> Progress:
        """Say which groups it has. It waits for others only, so that it answers at all is a sign that it gets on."""
        names = self._endpoint.sessions.names
        return Progress(next(self._looks), not names, frozenset(name.key for name in names))

    async def close(self) -> None:
        """Stop listening."""
        await self._endpoint.close()


def _listening(settings: EndpointSettings) -> socket.socket:
    try:
        found = enter(settings.doorway) if settings.doorway else listen(settings.host, settings.port)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise ConfigError(f"the endpoint cannot listen at {where}: {error}; expected a free port") from error
    found.setblocking(False)
    return found
