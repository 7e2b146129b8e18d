"""Agents in processes, the endpoint over HTTP, and who conducts them, without Ray: the tokens in the end are those that
were drawn, whatever of it dies.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.programs.functions import AgentFunctions
from lpo_ray.agents.programs.program import AgentSettings, HostedPrograms
from lpo_ray.errors import GroupLost, Unscored
from lpo_ray.training.call_store import CallStore
from tests.support.agent_endpoint import model_folder
from tests.support.agent_stage import PROMPT, SAMPLING, stage
from tests.support.chat_tokenizers import QWEN3, byte_tokenizer

pytestmark = [pytest.mark.slow]
HERE = f"{Path(__file__).parents[2]}/support/e2e_agents.py"


@pytest.fixture(scope="module")
def folder() -> str:
    return model_folder(byte_tokenizer(QWEN3, eos="<|im_end|>"))


@pytest.fixture
def record(tmp_path: Path) -> Iterator[CallStore]:
    made = CallStore(tmp_path / "calls.sqlite")
    yield made
    made.close()


def programs_of(agent: str) -> HostedPrograms:
    return AgentFunctions(AgentSettings(Hosted(agent=f"{HERE}:{agent}", processes=2)))


async def test_what_agents_asked_is_what_was_drawn_in_segments(folder: str, record: CallStore) -> None:
    """Three turns that go on, and a branch beside the second, as the agent asks."""
    async with stage(folder, record, programs_of("thrice")) as scene:
        group = await scene.group()
        scene.check(group)
        assert len(scene.engine.drew) == 16
        for response in group.responses:
            assert len(response.turns) == 4
            assert len(response.segments) == 2
            conversation = response.conversation
            assert conversation is not None
            assert conversation.ended == "done"
            assert conversation.verdict is not None
            assert 0.0 <= (conversation.verdict.reward or 0.0) <= 1.0


async def test_an_endpoint_that_dies_with_calls_in_flight_is_not_noticed_by_its_agents(
    folder: str, record: CallStore
) -> None:
    async with stage(folder, record, programs_of("slow"), seconds=0.5) as scene:
        sampling = asyncio.ensure_future(scene.group())
        for _ in range(2):
            await asyncio.sleep(1.2)
            await scene.endpoint.die(1.0)
        group = await sampling
        scene.check(group)
        assert len(scene.engine.drew) == 16, "no turn was drawn twice"
        assert scene.endpoint.generation == 2


async def test_agents_whose_process_dies_go_on_from_the_record(folder: str, record: CallStore) -> None:
    async with stage(folder, record, programs_of("slow"), seconds=0.2) as scene:
        sampling = asyncio.ensure_future(scene.group())
        while len(scene.engine.drew) < 9:
            await asyncio.sleep(0.05)
        assert isinstance(scene.programs, AgentFunctions)
        for child in scene.programs._pool._children:
            child._launched.process.kill()
        with pytest.raises(GroupLost) as lost:
            await sampling
        assert not isinstance(lost.value, Unscored)
        before = len(record.before("p0", 1, SAMPLING))
        assert before == 4
        drawn = len(scene.engine.drew)
        group = await scene.group(attempt=1)
        scene.check(group)
        answered = sum(map(len, record.before("p0", 1, SAMPLING).values()))
        assert len(scene.engine.drew) == drawn + 16 - answered


async def test_a_refused_call_ends_an_unaware_agent_and_its_response_counts_as_cut(
    folder: str, record: CallStore
) -> None:
    async with stage(folder, record, programs_of("thrice")) as scene:
        few = dataclasses.replace(SAMPLING, max_turns=2)
        group = await scene.rollout.sample(PROMPT, few, 0)
        scene.check(group)
        assert {response.finish_reason for response in group.responses} == {"length"}
        assert {response.conversation.ended for response in group.responses if response.conversation} == {"turns"}
