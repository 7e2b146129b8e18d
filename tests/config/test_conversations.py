"""Limits of conversations: what cannot be meant, what has no effect, what follows for prompts, engines and groups."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from lpo_ray.config import load_config
from lpo_ray.config.cautions import cautions
from lpo_ray.config.conversations import is_conversation, most_sampled, most_turns
from lpo_ray.errors import ConfigError
from lpo_ray.records import ConversationId, Observation, Prompt, PromptGroup, Sampling, Turn, TurnRequest
from lpo_ray.rollout.conversations import ConversationRollout
from lpo_ray.run.numbers import numbers
from lpo_ray.run.settings import agent_settings, evaluation_settings, sampling
from lpo_ray.run.spec import RunSpec, outline
from lpo_ray.tools.simulate.virtual_time import run
from tests.support.conversations import FakeEnvironments, said

RECIPE = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
TURNS = "task.environment=tests.support.e2e_environments:Thrice"


def spec_of(*overrides: str, context: int = 128) -> RunSpec:
    return outline(load_config(RECIPE, list(overrides)), context)


def test_a_single_answer_knows_nothing_of_turns() -> None:
    spec = spec_of()
    assert not spec.has_turns
    assert (most_turns(spec.config), most_sampled(spec.config)) == (1, 24)
    assert (sampling(spec).max_turns, sampling(spec).max_conversation_tokens) == (1, None)
    assert spec.largest_group == 20 * 8 * 24 + 8 * 128
    assert spec.max_prompt_tokens == 128 - 24


def test_a_conversation_has_the_engine_s_context_or_what_it_is_given() -> None:
    spec = spec_of(TURNS)
    assert spec.has_turns
    assert (spec.longest_response, spec.max_model_len, spec.max_prompt_tokens) == (128, 128, 104)
    assert (most_turns(spec.config), most_sampled(spec.config)) == (8, 192)
    limited = spec_of(TURNS, "sampling.max_conversation_tokens=50", "sampling.max_turns=3")
    assert (limited.longest_response, limited.max_model_len, limited.max_prompt_tokens) == (50, 64, 26)
    assert most_sampled(limited.config) == 50
    for made in (sampling(limited), evaluation_settings(limited).sampling):
        assert (made.max_turns, made.max_conversation_tokens) == (3, 50)
    assert spec.largest_group == 8 * (20 * 192 + 9 * 8 * 128) + 8 * 128
    assert limited.largest_group == 8 * (20 * 72 + 9 * 3 * 50) + 8 * 128
    assert (
        spec_of("task.tools=[calculator]").largest_group == 8 * (20 * 128 + 9 * 128) + 8 * 128
    )  # they rewrite nothing


class Talker:
    """An engine whose turns take all the room they are given, but end well."""

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        raise NotImplementedError

    async def turn(self, request: TurnRequest) -> Turn:
        size = request.max_tokens
        return Turn(np.arange(size), np.zeros(size, np.float32), np.arange(size), "stop")


@pytest.mark.parametrize("rewrites", [True, False])
@pytest.mark.parametrize("overrides", [(), ("sampling.max_conversation_tokens=60", "sampling.max_turns=3")])
def test_no_group_takes_more_than_the_largest_whatever_its_environment_does(
    rewrites: bool, overrides: tuple[str, ...]
) -> None:
    spec = spec_of(TURNS, *overrides)
    room = spec.longest_response - 24  # for a turn of all its tokens

    def answer(name: ConversationId, turn: int) -> Observation:
        if rewrites:
            return Observation(None, context_ids=np.full(room, 7 + turn), author="user")
        return said(*range(4))

    environments = FakeEnvironments(answer, first=lambda name: np.full(room if rewrites else 4, 3 + name.response))
    rollout = ConversationRollout(Talker(), environments, spec.max_model_len)
    prompt = Prompt("p0", np.array([1, 2, 3]), "", "countdown")
    group = run(rollout.sample(prompt, sampling(spec), 0))
    assert group.num_bytes <= spec.largest_group
    if rewrites:
        assert group.num_bytes > 0.85 * spec.largest_group, "and the bound is no guess"
    assert pickle.loads(pickle.dumps(group)).num_bytes <= spec.largest_group


def test_tools_are_enough() -> None:
    assert is_conversation(load_config(RECIPE, ["task.tools=[calculator]"]).task)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sampling.max_turns=0"], "sampling.max_turns is 0; expected a number above 0"),
        (["sampling.max_conversation_tokens=24"], "sampling.max_conversation_tokens is 24 with sampling.max_tokens=24"),
        (["environment.processes=0"], "environment.processes is 0"),
        (["environment.turn_seconds=0"], "environment.turn_seconds is 0"),
        (["environment.turn_seconds=700"], r"conversation_seconds is 600.0; expected environment.turn_seconds \(700\)"),
        (["task.tools=[calculator,calculator]"], "'calculator' once"),
        (["task.tools=[' ']"], r"task.tools\[0\] is ' '"),
        (["task.environment=' '"], "task.environment is ' '"),
        (["objective.length_norm=sum", "sampling.max_tokens=600"], "4800 in all turns"),
    ],
)
def test_what_cannot_be_meant(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config(RECIPE, [TURNS, *overrides])


AGENT = "task.agent=agent.py:solve"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["task.agent=agent.py"], "task.agent is 'agent.py'; expected a function"),
        (["task.agent=agent.py:"], "expected a function"),
        (["task.agent=[]"], "expected a command and its arguments"),
        (["task.agent=['']"], "expected a command and its arguments"),
        (["task.agent=[python, [agent.py]]"], "expected a command and its arguments"),
        (["task.agent={python: agent.py}"], "expected a function"),
        (["task.agent=7"], "expected a function"),
        ([AGENT, TURNS], "with task.environment=.*expected one of them"),
        ([AGENT, "task.tools=[calculator]"], "with task.tools=.*expected one of them"),
        ([AGENT, "cluster.kind=inprocess"], "cluster.kind is 'inprocess'; expected ray with task.agent"),
        ([AGENT, "sampling.max_turns=0"], "sampling.max_turns is 0"),
    ],
)
def test_an_agent_that_cannot_be_meant(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config(RECIPE, overrides)


def test_an_agent_is_a_function_or_a_command() -> None:
    function, command = spec_of(AGENT), spec_of("task.agent=[python, agent.py, 7]")
    assert (function.has_agent, function.has_turns) == (True, True)
    assert (agent_settings(function).hosted.agent, agent_settings(function).command) == ("agent.py:solve", ())
    made = agent_settings(command)
    assert (made.hosted.agent, made.command) == (None, ("python", "agent.py", "7"))
    assert function.largest_group == spec_of(TURNS).largest_group, "it may rewrite its history at every call"
    assert numbers(command)["agent"] == "python agent.py 7"
    own = spec_of(AGENT, "task.name=countdown_turns")
    assert own.config.task.environment is None, "the agent is in place of the task's own environment"


def test_a_conversation_longer_than_the_context() -> None:
    from lpo_ray.run.preflight import check_context

    config = load_config(RECIPE, [TURNS, "sampling.max_conversation_tokens=200"])
    with pytest.raises(ConfigError, match="max_conversation_tokens is 200, but the model has 128 positions"):
        check_context(config, 128)
    check_context(load_config(RECIPE, ["sampling.max_conversation_tokens=200"]), 128)  # has no effect


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["sampling.max_turns=3"], ["sampling.max_turns has no effect while task.environment is null"]),
        (["environment.processes=3", "sampling.max_conversation_tokens=90"], ["environment have no effect"]),
        (["task.tool_parser=hermes"], ["task.tool_parser has no effect"]),
        ([TURNS, "sampling.max_turns=3", "environment.processes=1"], []),
        ([TURNS, "task.tool_parser=hermes"], []),  # an environment may have tools of its own
        (["task.tools=[calculator]", "task.tool_parser=hermes"], []),
    ],
)
def test_what_has_no_effect(overrides: list[str], expected: list[str]) -> None:
    found = cautions(load_config(RECIPE, overrides))
    assert len(found) == len(expected)
    assert all(part in said for part, said in zip(expected, found, strict=True))
