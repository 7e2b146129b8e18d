"""Memory of endpoint and conductor at a fixed rate of sessions: as much at the end as at the beginning."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.programs.functions import AgentFunctions
from lpo_ray.agents.programs.program import AgentSettings
from lpo_ray.records import PromptGroup
from lpo_ray.training.call_store import CallStore
from tests.support.agent_endpoint import model_folder
from tests.support.agent_stage import PROMPT, SAMPLING, Stage, stage
from tests.support.chat_tokenizers import QWEN3, byte_tokenizer

MINUTES = float(os.environ.get("LPO_RAY_SOAK_MINUTES", "30"))
PAUSE = 2.0
"""seconds between two groups: 2 sessions a second, 8 calls"""
MOST_GROWTH = {"endpoint": 0.03, "agents": 0.1}
"""of the highest memory, from the second quarter to the last, as a share. Clients of the SDK are garbage in cycles:
Python collects it after hundreds of sessions, and a process of agents grows by steps until then.
"""
AGENT = f"{Path(__file__).parents[2]}/support/e2e_agents.py:thrice"
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(60 * MINUTES + 300)]


async def test_memory_is_flat(tmp_path: Path) -> None:
    record = CallStore(tmp_path / "calls.sqlite")
    program = AgentFunctions(AgentSettings(Hosted(agent=AGENT, processes=1, memory_mib=4096)))
    folder = model_folder(byte_tokenizer(QWEN3, eos="<|im_end|>"), tmp_path / "model")
    curve: list[tuple[float, float, float]] = []
    groups: set[asyncio.Task[None]] = set()
    async with stage(folder, record, program, seconds=0.05) as scene:
        began, number = time.monotonic(), 0
        while (passed := time.monotonic() - began) < 60 * MINUTES:
            groups.add(task := asyncio.create_task(_group(scene, record, number)))
            task.add_done_callback(groups.discard)
            number += 1
            if number % 5 == 1:
                curve.append((passed, *_mib()))
                scene.engine.drew.clear()
            await asyncio.sleep(max(0.0, began + number * PAUSE - time.monotonic()))
            assert len(groups) < 60, "it does not keep up with the rate"
        await asyncio.gather(*groups)
    assert record.prompts() == set()
    record.close()
    for seconds, own, agents in curve:
        sys.stdout.write(f"{seconds:7.0f} s  endpoint {own:7.1f} MiB  agents {agents:7.1f} MiB\n")
    quarter = len(curve) // 4
    for column, (who, growth) in enumerate(MOST_GROWTH.items(), 1):
        second, last = (
            max(each[column] for each in part) for part in (curve[quarter : 2 * quarter], curve[-quarter:])
        )  # fmt: skip
        assert last <= second * (1 + growth), (who, second, last)


async def _group(scene: Stage, record: CallStore, number: int) -> None:
    prompt = dataclasses.replace(PROMPT, prompt_id=f"p{number}", row={"prompt": f"{number}+25?"})
    group: PromptGroup = await scene.rollout.sample(prompt, SAMPLING, 0)
    for response in group.responses:
        assert len(response.turns) == 4
        assert np.isfinite(response.behaviour_logprobs).all()
    await record.forget(prompt.prompt_id)  # as the ledger does when it is trained


def _mib() -> tuple[float, float]:
    """Memory of this process, and of those that it started."""
    own = psutil.Process()
    return own.memory_info().rss / 2**20, sum(c.memory_info().rss for c in own.children(recursive=True)) / 2**20
