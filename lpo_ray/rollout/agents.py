"""Agents as responses: the K of a group side by side, each a program that asks for turns as it likes.

```
 open ──▶ agent asks ──▶ limits ──▶ engine: turn ──▶ record ──▶ answer ──▶ agent asks ...
             │              └─ refused: the response counts as cut
             ├─ ends, with a verdict or without ──▶ end ──▶ Response
             └─ raises, is silent, asked nothing ──▶ Unscored
```
Calls of one session may overlap. A call is recorded before it is answered: when the agent has to run again, through no
fault of its own, it gets the same answers for as long as it asks the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from lpo_ray.common.silence import ROUNDING
from lpo_ray.errors import Unscored
from lpo_ray.interfaces import Agents, CallRecord, RolloutEngine, TurnEngine
from lpo_ray.records import (
    Answered,
    Call,
    ConversationId,
    Finished,
    Prompt,
    PromptGroup,
    Refusal,
    Sampling,
    Turn,
    TurnRequest,
)
from lpo_ray.rollout.transcript import Ending, Place, Transcript, side_by_side

MOST_REFUSED = 100
"""calls of a session that are refused, before it is ended"""


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """Limits of a session, beside those of sampling."""

    most_tokens: int
    """of context and answer together that an engine has room for"""
    silent_seconds: float
    """that an agent may be silent while it waits for no call"""
    own_seconds: float
    """that an agent may take altogether while it waits for no call"""


class AgentRollout(RolloutEngine):
    """RolloutEngine whose responses are sessions of agents."""

    def __init__(
        self, engine: TurnEngine, agents: Agents, limits: AgentLimits, record: CallRecord | None = None
    ) -> None:
        """``record``: None: an agent that has to run again gets new answers."""
        self._engine, self._agents, self._limits, self._record = engine, agents, limits, record

    @override
    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """Conduct ``sampling.group_size`` sessions. Raises Unscored when an agent fails by itself."""
        record, prompt_id = self._record, prompt.prompt_id
        before = {} if record is None else await record.begin(prompt_id, attempt, sampling)

        async def conduct(name: ConversationId) -> tuple[Transcript, Ending]:
            calls = _Calls(name, sampling, self._engine, self._agents, self._limits.most_tokens, record)
            calls.recorded = list(before.get(name.response, ()))
            try:
                await self._agents.open(name, prompt)
                return calls.transcript, await self._conducted(name, calls)
            finally:
                await calls.close()
                await self._agents.end(name)

        try:
            return await side_by_side(prompt, sampling, attempt, conduct)
        except Unscored:
            if record is not None:
                await record.forget(prompt_id)
            raise

    async def _conducted(self, name: ConversationId, calls: _Calls) -> Ending:
        """Serve an agent until its end."""
        own = _OwnTime(self._limits, self._agents)
        asking = asyncio.ensure_future(self._agents.next(name))
        try:
            while calls.num_refused < MOST_REFUSED:
                if not await own.passed({asking}, calls.pending):
                    if not calls.limited:
                        raise Unscored(*name.key, _with_lines(name, own.reason(), await self._agents.end(name)))
                    break
                calls.check()
                if not asking.done():
                    continue
                found = asking.result()
                if isinstance(found, Finished):
                    return _ending(name, calls, found, own.seconds)
                calls.take(found)
                asking = asyncio.ensure_future(self._agents.next(name))
        except Unscored:
            if not calls.limited or not calls.transcript.num_turns:
                raise
        finally:
            asking.cancel()
        # It was refused a call, and did not end well: it counts with what it has, as any response that is cut.
        return _ending(name, calls, Finished(None, None), own.seconds)


def _ending(name: ConversationId, calls: _Calls, found: Finished, seconds: float) -> Ending:
    if not calls.transcript.num_turns:
        reason = calls.refusal or "its agent ended without an answer from the policy"
        raise Unscored(*name.key, _with_lines(name, reason, found.last_lines))
    return Ending(calls.limited or calls.cut or "done", found.verdict, found.output, seconds)


def _with_lines(name: ConversationId, reason: str, last_lines: str) -> str:
    return f"response {name.response}: {reason}" + (f"; it printed last: {last_lines}" if last_lines else "")


class _OwnTime:
    """Time that an agent takes while it waits for no call."""

    def __init__(self, limits: AgentLimits, agents: Agents) -> None:
        self._limits, self._agents = limits, agents
        self.seconds = 0.0

    async def passed(self, asking: set[asyncio.Future[Call | Finished]], pending: set[asyncio.Task[None]]) -> bool:
        """Wait until something happens. False: nothing did for too long."""
        if pending:
            await asyncio.wait({*asking, *pending}, return_when=asyncio.FIRST_COMPLETED)
            return True
        clock, silence = asyncio.get_running_loop().time, 0.0
        while (left := min(self._limits.silent_seconds - silence, self._limits.own_seconds - self.seconds)) > ROUNDING:
            started, away = clock(), self._agents.downtime()
            done, _ = await asyncio.wait(asking, timeout=left)
            passed = max(0.0, clock() - started - (self._agents.downtime() - away))
            self.seconds, silence = self.seconds + passed, silence + passed
            if done:
                return True
        return False

    def reason(self) -> str:
        """Say which limit was reached."""
        if self.seconds >= self._limits.own_seconds - ROUNDING:
            return (
                f"its agent took {self._limits.own_seconds:g} s beside the calls that it waited for "
                "(environment.conversation_seconds)"
            )
        return f"its agent was silent for {self._limits.silent_seconds:g} s (environment.turn_seconds)"


class _Calls:
    """Calls of one session."""

    def __init__(
        self,
        name: ConversationId,
        sampling: Sampling,
        engine: TurnEngine,
        agents: Agents,
        most_tokens: int,
        record: CallRecord | None,
    ) -> None:
        self._name, self._sampling, self._engine, self._agents = name, sampling, engine, agents
        self._limit = min(most_tokens, sampling.max_conversation_tokens or most_tokens)
        self._record = record
        self.transcript = Transcript()
        self.recorded: list[Answered] = []
        """what the attempt before was answered, and this one has not asked yet"""
        self.pending: set[asyncio.Task[None]] = set()
        """calls that are being answered"""
        self.num_refused = 0
        self.limited = ""
        """limit at which a call was refused, see Conversation.ended; empty: none was since the last answer"""
        self.refusal = ""
        """what the first one was told"""
        self.cut = ""
        """limit of the run at which the last answer was cut"""
        self._answers: dict[bytes, asyncio.Task[Turn | Refusal]] = {}
        """by request: one that is made again, as of a new endpoint, is the same call"""
        self._num_begun = 0

    def take(self, call: Call) -> None:
        """Answer a call, in the background."""
        answer = self._answers.get(call.request)
        if answer is None:
            answer = self._answers[call.request] = asyncio.ensure_future(self._begun(call))
        self.pending.add(asyncio.ensure_future(self._deliver(call.number, answer)))

    def check(self) -> None:
        """Forget calls that were answered. Raises what one failed with."""
        for task in [task for task in self.pending if task.done()]:
            self.pending.discard(task)
            task.result()

    async def close(self) -> None:
        """Give up the calls that are being answered."""
        tasks = [*self.pending, *self._answers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, number: int, answer: asyncio.Task[Turn | Refusal]) -> None:
        await self._agents.answer(self._name, number, await asyncio.shield(answer))

    async def _begun(self, call: Call) -> Turn | Refusal:
        room = self._limit - len(call.context_ids)
        if refusal := self._refused(call, room):
            return refusal
        number, before = self._num_begun, self.num_refused
        self._num_begun += 1
        place = self.transcript.asked(call.context_ids, call.began)
        try:
            turn = await self._turn(call, number, place, room)
            if self._record is not None:
                await self._record.put(self._name, Answered(call, turn), self._sampling)
        except BaseException:
            self.transcript.failed(place)
            raise
        self.transcript.said(place, turn, call.author)
        if before == self.num_refused:  # an agent that found a way around the limit, such as a shorter history
            self.limited = ""
        return turn

    async def _turn(self, call: Call, number: int, place: Place, room: int) -> Turn:
        allowed = min(room, self._sampling.max_tokens)
        most = allowed if call.max_tokens is None else max(1, min(allowed, call.max_tokens))
        turn = self._recorded(call)
        if turn is None:
            turn = await self._engine.turn(
                TurnRequest(self._name, number, call.context_ids, self._sampling, most, place.engine, call.stop)
            )
        is_cut = turn.finish_reason == "length" and most == allowed
        self.cut = ("length" if allowed == self._sampling.max_tokens else "tokens") if is_cut else ""
        return turn

    def _recorded(self, call: Call) -> Turn | None:
        """Take the answer that the attempt before got to the same call."""
        for number, answered in enumerate(self.recorded):
            before = answered.call
            if before.request == call.request and np.array_equal(before.context_ids, call.context_ids):
                del self.recorded[number]
                return answered.turn
        return None

    def _refused(self, call: Call, room: int) -> Refusal | None:
        """Refuse a call at a limit. Raises Unscored for one without a context."""
        most = self._sampling.max_turns
        if not len(call.context_ids):
            raise Unscored(*self._name.key, f"response {self._name.response}: its agent asked with an empty context")
        if self._num_begun >= most:
            kind, reason = "turns", f"this session has had its {most} calls (sampling.max_turns)"
        elif room <= 0:
            asked = f"this call has {len(call.context_ids)} tokens before its answer"
            kind, reason = "tokens", f"{asked}; expected {self._limit - 1} at most (sampling.max_conversation_tokens)"
        else:
            return None
        self.num_refused += 1
        self.limited, self.refusal = kind, self.refusal or reason
        return Refusal(kind, reason)
