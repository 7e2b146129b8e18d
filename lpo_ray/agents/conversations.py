"""Environments of conversations: messages of child processes in, tokens out (``interfaces.Environments``)."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import override

from lpo_ray.agents.contexts.chat import Chat, Encoder
from lpo_ray.agents.contexts.transcript import Transcript
from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.processes.pool import EnvironmentPool
from lpo_ray.agents.processes.process import Lost, Refused
from lpo_ray.common.seeds import derive_seed
from lpo_ray.errors import DataError, GroupLost, Unscored
from lpo_ray.interfaces import Environments
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import ConversationId, IntArray, Observation, Prompt, Turn
from lpo_ray.verdict import Verdict

logger = logging.getLogger(__name__)
REWRITTEN = "the environment rewrote the history"


@dataclass(frozen=True, slots=True)
class EnvironmentSettings:
    """Settings of environments: what is hosted, and the run's seed."""

    hosted: Hosted
    seed: int = 0


class HostedEnvironments(Environments):
    """Environments in a pool of child processes. Lives in one event loop."""

    def __init__(self, settings: EnvironmentSettings, tokenizer: Tokenizer, encoder: Encoder) -> None:
        self._tokenizer, self._chat = tokenizer, Chat(tokenizer, encoder)
        parser, trouble = self._chat.parser()
        if trouble and encoder.style.tools and not encoder.is_plain and settings.hosted.parser == "auto":
            logger.warning("%s: expected a chat template with tools (task.chat_template), or task.tool_parser", trouble)
        hosted = replace(settings.hosted, template_parser=parser)
        self._pool, self._seed = EnvironmentPool(hosted), settings.seed
        self._transcripts: dict[ConversationId, Transcript] = {}

    @override
    async def open(self, conversation: ConversationId, prompt: Prompt) -> IntArray:
        seed = derive_seed(self._seed, *conversation)
        with _faults_of(conversation):
            answer = await self._pool.open(_name(conversation), prompt.prompt_id, row_of(prompt), seed)
            transcript = self._begun(prompt, answer["messages"])
        self._transcripts[conversation] = transcript
        return transcript.token_ids

    @override
    async def reply(self, conversation: ConversationId, turn: Turn) -> Observation:
        transcript = self._transcripts.get(conversation)
        with _faults_of(conversation):
            if transcript is None:
                raise Lost("there is no such conversation here: it was ended, or its process was")
            content, shown = self._said(turn.token_ids)
            answer = await self._pool.step(_name(conversation), content, shown, is_plain=transcript.is_plain)
            return _observation(transcript, turn, answer)

    @override
    async def end(self, conversation: ConversationId) -> None:
        self._transcripts.pop(conversation, None)
        self._pool.end(_name(conversation))

    @property
    def given(self) -> int:
        """Calls that environments have answered so far."""
        return self._pool.given

    def resize(self, processes: int) -> None:
        """Use another number of processes from now on."""
        self._pool.resize(processes)

    async def close(self) -> None:
        """End every process that an environment started. Never raises."""
        await self._pool.close()

    def _begun(self, prompt: Prompt, messages: list[dict[str, Any]] | None) -> Transcript:
        """Begin a transcript: with the prompt as it is, unless the environment has messages of its own."""
        if messages is not None:
            return Transcript.of(self._chat, messages, is_plain=self._chat.encoder.is_plain)
        asked = prompt.row.get("prompt")
        if asked is None:  # a task that keeps none: what matters is only what stands behind it
            asked = self._tokenizer.decode(prompt.token_ids)
        return Transcript(self._chat, prompt.token_ids, self._chat.encoder.conversation(asked))

    def _said(self, token_ids: IntArray) -> tuple[str, str]:
        """Return a turn as text, and as text with special tokens except the one that ends it."""
        is_ended = len(token_ids) > 0 and self._tokenizer.is_special(int(token_ids[-1]))
        return self._tokenizer.decode(token_ids), self._tokenizer.show(token_ids[:-1] if is_ended else token_ids)


def row_of(prompt: Prompt) -> Mapping[str, Any]:
    """Return the row that an environment begins with: the data set's columns, and the right answer as ``answer``."""
    answer = prompt.answer if prompt.raw_answer is None else prompt.raw_answer
    return {**prompt.row, "answer": answer}


def _observation(transcript: Transcript, turn: Turn, answer: Mapping[str, Any]) -> Observation:
    messages, history = answer["messages"], answer["history"]
    done, verdict, seconds = bool(answer["done"]), verdict_of_answer(answer["verdict"]), float(answer["seconds"])
    if done:
        return Observation(None, author=_author(messages), done=True, verdict=verdict, seconds=seconds)
    if history is not None:
        context = transcript.rewrite([*history, *messages])
        return Observation(None, context, REWRITTEN, _author(messages or history), verdict=verdict, seconds=seconds)
    added = transcript.append(turn.token_ids, answer["calls"], messages)
    return Observation(
        added.token_ids, author=_author(messages), verdict=verdict, seconds=seconds, dropped=added.dropped
    )


def verdict_of_answer(found: Mapping[str, Any] | None) -> Verdict | None:
    """Read the verdict that a child process wrote. Raises Refused."""
    if found is None:
        return None
    reward, detail = found["reward"], str(found["detail"])
    if reward is None:
        return Verdict(None, detail, found["lack"] if found["lack"] in ("abstained", "failed") else "unscored")
    if type(reward) not in (int, float) or not math.isfinite(reward):
        raise Refused(f"its verdict is {reward!r}; expected a finite number")
    return Verdict.scored(float(reward), detail)


def _author(messages: list[dict[str, Any]]) -> str:
    return str(messages[-1]["role"]) if messages else ""


def _name(conversation: ConversationId) -> str:
    return f"{conversation.prompt_id}/{conversation.attempt}/{conversation.response}"


@contextlib.contextmanager
def _faults_of(conversation: ConversationId) -> Iterator[None]:
    """Raise a fault of the environment as Unscored, and the end of its process as GroupLost."""
    response = f"response {conversation.response}"
    try:
        yield
    except (Refused, DataError) as error:
        raise Unscored(*conversation.key, f"{response}: its environment has no verdict: {error}") from error
    except Lost as error:
        raise GroupLost(*conversation.key, f"{response}: {error}") from error
