"""Agents of other packages and languages, unmodified, as ``configs/agents`` has them: over HTTP, without Ray."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.programs.commands import AgentCommands
from lpo_ray.agents.programs.functions import AgentFunctions
from lpo_ray.agents.programs.program import AgentSettings, HostedPrograms
from lpo_ray.training.call_store import CallStore
from tests.support.agent_endpoint import model_folder
from tests.support.agent_stage import stage
from tests.support.chat_tokenizers import QWEN3, byte_tokenizer

pytestmark = [pytest.mark.slow]
HERE = Path(__file__).parents[3] / "configs" / "agents"


MOST_TOKENS = 2**15


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"the package {package} is not installed")


@pytest.fixture(scope="module")
def folder() -> str:
    """A model's folder with room for the long prompts of frameworks, a token a byte."""
    made = Path(model_folder(byte_tokenizer(QWEN3, eos="<|im_end|>")))
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "max_position_embeddings": MOST_TOKENS}))
    return str(made)


@pytest.fixture
def record(tmp_path: Path) -> Iterator[CallStore]:
    made = CallStore(tmp_path / "calls.sqlite")
    yield made
    made.close()


def function(name: str) -> HostedPrograms:
    return AgentFunctions(AgentSettings(Hosted(agent=f"{HERE}/{name}", processes=1, memory_mib=2048)))


def command(*words: str) -> HostedPrograms:
    return AgentCommands(AgentSettings(Hosted(processes=2, memory_mib=2048), words))


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        pytest.param("by_hand.py", 2),
        pytest.param("ask.sh", 1, marks=pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")),
        pytest.param("ask.mjs", 1, marks=pytest.mark.skipif(shutil.which("node") is None, reason="no node here")),
        pytest.param("smolagents_code.py", 3, marks=needs("smolagents")),
        pytest.param("mini_swe.py", 3, marks=needs("minisweagent")),
    ],
)
async def test_it_is_trained_on_what_it_asked(name: str, calls: int, folder: str, record: CallStore) -> None:
    kinds = {".sh": "sh", ".mjs": "node", ".py": "python"}
    program = (
        function(f"{name}:solve") if name in ("by_hand.py", "smolagents_code.py")
        else command(kinds[os.path.splitext(name)[1]], str(HERE / name))
    )  # fmt: skip
    async with stage(folder, record, program, most_tokens=MOST_TOKENS) as scene:
        group = await asyncio.wait_for(scene.group(), 280)
        scene.check(group)
        for response in group.responses:
            assert len(response.turns) == calls
            assert response.conversation is not None
            assert response.conversation.ended == "done"
