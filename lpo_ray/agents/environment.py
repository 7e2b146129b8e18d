"""The contract of environments: what a user writes in one file. Standard library only: it runs in child processes.

Example::

    class Guess(Environment):  # one object for each conversation
        async def reset(self, row):
            self.secret = row["answer"]
            return [{"role": "user", "content": "Guess a number below 100."}]

        async def step(self, reply):
            if reply["content"].strip() == self.secret:
                return Step(verdict=1.0, done=True)
            return Step([{"role": "user", "content": "Wrong. Again?"}])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lpo_ray.verdict import Verdict

Message = dict[str, Any]
"""a message in the chat form: role, content (a text), and tool_calls where there are any"""


class Unavailable(Exception):
    """Error of a tool or an environment that lacks something, such as a service, through no fault of the policy's. The
    group is lost and issued again, and the model is told nothing. Any other exception of a tool is an answer to it.
    """


@dataclass(frozen=True, slots=True)
class Step:
    """Answer of an environment to a reply of the policy.

    Example: ``Step([{"role": "user", "content": "Too low."}])``, ``Step(verdict=1.0, done=True)``
    """

    messages: Sequence[Message] = ()
    """what the policy answers next; needed unless the conversation is done"""
    verdict: Verdict | float | None = None
    """of the conversation as it stands: counts when it ends here, as done or at a limit. None: a verifier decides"""
    done: bool = False
    """the conversation is over"""
    history: Sequence[Message] | None = None
    """messages in place of all before, as when a history is summed up; ``messages`` follow it"""


class Environment:
    """The other side of one conversation. Methods may be ``async`` or plain functions.

    Whatever they raise leaves the response unscored: it is sampled again, and never counts as a reward of 0.
    """

    seed: int = 0
    """of this conversation; the same whenever the run is repeated"""

    async def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """Begin, and return the first messages: the prompt, unless a class has its own. ``row`` has the columns of the
        data set, with the prompt as ``prompt`` and the right answer as ``answer``.
        """
        return prompt_messages(row)

    async def step(self, reply: Message) -> Step:
        """Answer what the policy said: ``content``, and ``tool_calls`` where it made any."""
        raise NotImplementedError(f"{type(self).__name__} has no step; expected async def step(self, reply) -> Step")

    async def close(self) -> None:
        """Let go of what the conversation holds. Called once, however it ended, unless its process has died."""


def prompt_messages(row: Mapping[str, Any]) -> list[Message]:
    """Return the prompt of a row as messages: a text is what the user says. Empty when the row has none."""
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in prompt or ()]
