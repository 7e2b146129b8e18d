"""Conversations as responses: the K of a group side by side, turn by turn, between engine and environment.

```
 open ──▶ context ──▶ engine: turn ──▶ environment: reply ──┬─ more ──▶ context, a segment goes on or begins
              ▲                                             │
              └─────────────────────────────────────────────┤
                                                            └─ done, or a limit ──▶ end ──▶ Response
```
What the engine sampled is kept as its ids and never tokenised again: the next context is context + turn + what the
environment wrote. A group is complete, or lost as a whole with the reason of its first conversation that was; every
environment that was opened is told its end, whatever happens.
"""

from __future__ import annotations

import numpy as np
from typing_extensions import override

from lpo_ray.errors import Unscored
from lpo_ray.interfaces import Environments, RolloutEngine, TurnEngine
from lpo_ray.records import ConversationId, IntArray, Observation, Prompt, PromptGroup, Sampling, Turn, TurnRequest
from lpo_ray.rollout.transcript import Ending, Transcript, side_by_side

REWRITTEN = "the environment rewrote its history"


class ConversationRollout(RolloutEngine):
    """RolloutEngine whose responses are conversations."""

    def __init__(self, engine: TurnEngine, environments: Environments, most_tokens: int) -> None:
        """``most_tokens``: of context and turn together that an engine has room for."""
        self._engine, self._environments, self._most_tokens = engine, environments, most_tokens

    @override
    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """Conduct ``sampling.group_size`` conversations."""
        return await side_by_side(prompt, sampling, attempt, lambda name: self._conducted(name, prompt, sampling))

    async def _conducted(self, name: ConversationId, prompt: Prompt, sampling: Sampling) -> tuple[Transcript, Ending]:
        limit = min(self._most_tokens, sampling.max_conversation_tokens or self._most_tokens)
        transcript, began, author, seconds, dropped = Transcript(), "", "", 0.0, 0
        try:
            context = await self._environments.open(name, prompt)
            if not 0 < len(context) < limit:
                reason = f"its first context has {len(context)} tokens; expected 1 to {limit - 1}"
                raise Unscored(*name.key, f"conversation {name.response}: {reason}")
            while True:
                place = transcript.asked(context, began)
                most = min(limit - len(context), sampling.max_tokens)
                request = TurnRequest(name, transcript.num_turns, context, sampling, most, place.engine)
                turn = await self._engine.turn(request)
                transcript.said(place, turn, author)
                observation = await self._environments.reply(name, turn)
                context, began = _next_context(context, turn, observation)
                author, seconds = observation.author, seconds + observation.seconds
                dropped = max(dropped, observation.dropped)
                if ended := _end(request, turn, observation, has_room=len(context) < limit):
                    return transcript, Ending(ended, observation.verdict, None, seconds, author, dropped)
                if observation.appended_ids is None and observation.context_ids is None:
                    reason = "its environment is not done, and says nothing"
                    raise Unscored(*name.key, f"conversation {name.response}: {reason}")
        finally:
            await self._environments.end(name)


def _end(request: TurnRequest, turn: Turn, observation: Observation, *, has_room: bool) -> str:
    """Say why the conversation ends here, as ``Conversation.ended``; empty: it goes on."""
    if turn.finish_reason == "length":
        return "length" if request.max_tokens == request.sampling.max_tokens else "tokens"
    if observation.done:
        return "done"
    if request.turn + 1 >= request.sampling.max_turns:
        return "turns"
    return "" if has_room else "tokens"


def _next_context(context: IntArray, turn: Turn, observation: Observation) -> tuple[IntArray, str]:
    """Make the next turn's context, and say why a segment would begin with it."""
    if observation.appended_ids is None and observation.context_ids is not None:
        return observation.context_ids, observation.began or REWRITTEN
    appended = () if observation.appended_ids is None else (observation.appended_ids,)
    return np.concatenate([context, turn.token_ids, *appended]), ""
