"""Environments in the shapes of other systems. Child processes import this file by its path.

``MultiTurnEnv`` does what verifiers 0.1.14 does in a rollout, as far as a client and a rubric can see it.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

from lpo_ray.agents import Environment, Step

NUMBER = 5


class Nothing:
    """No shape that is known."""


def load_number():
    return NUMBER


class GuessEnv:
    """Of TRL, with no reward of its own, an async tool and more of the prompt."""

    def reset(self, answer, **row):
        self.target = json.loads(answer)["target"]
        return "Guess."

    async def guess(self, number: str) -> str:
        """Guess the number."""
        return "right" if int(number) == self.target else "too high" if int(number) > self.target else "too low"

    def _hidden(self):
        raise RuntimeError("no tool")


class PartsEnv:
    """Of TRL, with more of the prompt in parts."""

    kind = "text"

    def reset(self, **row):
        return [{"type": self.kind, "text": "1"}, {"type": "text", "text": "2"}]


class ImageEnv(PartsEnv):
    kind = "image"


class Rubric:
    async def score_rollout(self, state):
        state["reward"] = float(len(state["trajectory"]) == 2)


class MultiTurnEnv:
    def __init__(self, max_turns=2):
        self.rubric, self.max_turns = Rubric(), max_turns

    async def env_response(self, messages, state):
        return [{"role": "user", "content": f"={len(messages[-1].content)}\n"}]

    async def answered(self, client, messages, state):
        response = await client.get_response(
            prompt=messages, model=state["model"], tools=None, sampling_args={}, state=state
        )
        return response.message

    async def rollout(self, input, client, model, sampling_args=None):
        state = {"trajectory": [], "error": None, "reward": None, "model": model, "client": client, **input}
        messages = [SimpleNamespace(**message) for message in input["prompt"]]
        while len(state["trajectory"]) < self.max_turns:
            if state["trajectory"]:
                said = await self.env_response(messages, state)
                messages = self.joined(messages, [SimpleNamespace(**message) for message in said])
            messages = list(messages)
            message = await self.answered(client, [vars(each) for each in messages], state)
            state["trajectory"].append(message)
            messages.append(SimpleNamespace(role="assistant", content=message.content, tool_calls=message.tool_calls))
        return state

    def joined(self, messages, said):
        return messages + said


class OpenAIEnv(MultiTurnEnv):
    """With a client as the openai package has it, as before 0.1.9."""

    async def answered(self, client, messages, state):
        completion = await client.chat.completions.create(model=state["model"], messages=messages, n=1)
        return completion.choices[0].message


class ToolEnv(MultiTurnEnv):
    tool_defs = [{"name": "double", "description": "", "parameters": {}}]

    async def env_response(self, messages, state):
        (call,) = messages[-1].tool_calls
        number = int(json.loads(call.arguments)[""])
        return [{"role": "tool", "content": str(2 * number), "tool_call_id": call.id}]


class RewritingEnv(MultiTurnEnv):
    def joined(self, messages, said):
        return [SimpleNamespace(role="user", content="summary. "), SimpleNamespace(role="user", content="go on")]


class FailingEnv(MultiTurnEnv):
    async def rollout(self, input, client, model, sampling_args=None):
        state = await super().rollout(input, client, model)
        return {**state, "error": ValueError("the tool broke")}


def load_environment():
    return MultiTurnEnv()


def load_openai_environment():
    return OpenAIEnv()


def load_tools():
    return ToolEnv()


def load_rewriting():
    return RewritingEnv()


def load_failing():
    return FailingEnv(1)


class Own(Environment):
    async def step(self, reply):
        return Step(verdict=0.5, done=True)


def made():
    """A function that makes an environment."""
    return Own()
