"""Agents that are commands: what they are given, what a verifier reads, what they may not, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.programs import command_box
from lpo_ray.agents.programs.command_box import trouble_with_sandbox
from lpo_ray.agents.programs.commands import AgentCommands
from lpo_ray.agents.programs.program import Access, AgentSettings
from lpo_ray.errors import GroupLost, Unscored
from lpo_ray.records import ConversationId, Finished, Prompt
from tests.support.chat_server import Chat, chat_server

NAME = ConversationId("p", 0, 0)
KEY = "lpo-session-of-this-test"
PROMPT = Prompt("p", np.array([1]), "5", "exact", {"prompt": "go "})
ASK = (
    'curl -s "$OPENAI_BASE_URL/chat/completions" -H "Authorization: Bearer $OPENAI_API_KEY" '
    '-H "Content-Type: application/json" -d "{}"'
)
NODE = (
    "fetch(process.env.ANTHROPIC_BASE_URL + '/v1/messages', {method: 'POST', "
    "headers: {'x-api-key': process.env.ANTHROPIC_API_KEY}, body: '{}'})"
    ".then(reply => reply.json()).then(reply => console.log(reply.choices[0].message.content))"
)
boxed = pytest.mark.skipif(trouble_with_sandbox() is not None, reason=f"no sandbox here: {trouble_with_sandbox()}")


@pytest.fixture(scope="module")
def chat() -> Iterator[Chat]:
    with chat_server() as made:
        yield made


@pytest.fixture(params=["in a sandbox", "without one"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "without one":
        monkeypatch.setattr(command_box, "trouble_with_sandbox", lambda: "this test has none")
    elif trouble_with_sandbox() is not None:
        pytest.skip(f"no sandbox here: {trouble_with_sandbox()}")
    return request.param


def living() -> set[psutil.Process]:
    """Processes that this one has started, and that have not ended."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
    return found


def their_folders() -> set[Path]:
    return set(Path("/tmp").glob("lpo-ray-agent-*"))


@asynccontextmanager
async def hosting(*command: str, **limits: object) -> AsyncIterator[AgentCommands]:
    network = bool(limits.pop("network", False))
    chosen = {"processes": 1, "memory_mib": 1024, **limits}
    others, folders = living(), their_folders()  # of others
    made = AgentCommands(AgentSettings(Hosted(**chosen), command, network=network))
    try:
        yield made
    finally:
        await asyncio.wait_for(made.close(), 30)
        assert living() <= others
        assert their_folders() <= folders


async def played(hosted: AgentCommands, chat: Chat, name: ConversationId = NAME) -> Finished:
    await hosted.begin(name, PROMPT)
    try:
        return await asyncio.wait_for(hosted.run(name, Access(chat.url, KEY)), 60)
    finally:
        await hosted.end(name)


async def shell(chat: Chat, text: str, **limits: object) -> Finished:
    async with hosting("sh", "-c", text, **limits) as hosted:
        return await played(hosted, chat)


async def test_it_has_its_row_its_key_and_its_folder(kind: str, chat: Chat) -> None:
    chat.asked.clear()
    found = await shell(chat, f"cat; echo; pwd; echo $HOME $TMPDIR; {ASK} >answer; ls -A; cat answer")
    row, folder, home, files, answer = found.output.splitlines()  # type: ignore[union-attr]
    assert json.loads(row) == {"prompt": "go ", "answer": "5"}
    assert home == f"{folder} {folder}"
    assert Path(folder).name.startswith("lpo-ray-agent-")
    assert files == "answer"
    assert json.loads(answer)["choices"][0]["message"]["content"] == "the answer"
    assert [key for key, _ in chat.asked] == [KEY]
    assert found.verdict is None


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")
async def test_it_may_be_of_any_language(kind: str, chat: Chat) -> None:
    chat.asked.clear()
    async with hosting("node", "-e", NODE) as hosted:
        assert (await played(hosted, chat)).output == "the answer\n"
    assert [key for key, _ in chat.asked] == [KEY]


async def test_no_secret_of_this_process_is_its_own(kind: str, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "https_proxy"):
        monkeypatch.setenv(name, "a secret of mine")
    monkeypatch.setenv("HARMLESS", "kept")
    output = (await shell(chat, "env")).output or ""
    assert "a secret of mine" not in output
    assert "HARMLESS=kept" in output


@boxed
async def test_in_its_box_it_reaches_nothing_else(chat: Chat, tmp_path: Path) -> None:
    here = Path(__file__).parent
    with chat_server() as other:
        found = await shell(
            chat,
            f"touch {here}/written 2>/dev/null && echo wrote; ls {tmp_path} 2>/dev/null && echo saw; "
            f"curl -s -m 3 {other.url} >/dev/null && echo reached; "
            f"kill -0 {os.getpid()} 2>/dev/null && echo found; echo end",
        )
        assert found.output == "end\n"
        found = await shell(chat, f"curl -s -m 3 -o /dev/null {other.url} -d '{{}}' && echo reached", network=True)
        assert found.output == "reached\n"


@boxed
async def test_what_it_names_it_sees_wherever_it_is(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "agent.sh").write_text("echo I am here; cat $(dirname $0)/beside")
    (tmp_path / "beside").write_text("and so am I")
    async with hosting("sh", str(tmp_path / "agent.sh")) as hosted:
        assert (await played(hosted, chat)).output == "I am here\nand so am I"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo my last words >&2; exit 3", "ended with exit code 3; it printed last: my last words"),
        ("kill -SEGV $$", "ended with exit code (-11|139)"),
        ("no-such-command", "ended with exit code 127; it printed last: .*not found"),
    ],
)
async def test_an_exit_code_is_no_verdict(kind: str, text: str, reason: str, chat: Chat) -> None:
    with pytest.raises(Unscored, match=f"its agent failed: its command {reason}"):
        await shell(chat, text)


async def test_one_that_is_not_there_is_its_user_s_affair(kind: str, chat: Chat) -> None:
    async with hosting("/no/such/agent") as hosted:
        with pytest.raises(Unscored, match=r"exit code 127|does not start"):
            await played(hosted, chat)


async def test_one_that_was_killed_is_lost_and_the_second_time_its_own_affair(kind: str, chat: Chat) -> None:
    async with hosting("sh", "-c", "kill -KILL $$") as hosted:
        with pytest.raises(GroupLost) as lost:
            await played(hosted, chat)
        assert not isinstance(lost.value, Unscored)
        with pytest.raises(Unscored):
            await played(hosted, chat, ConversationId("p", 1, 0))


async def test_output_is_cut_and_an_endless_printer_costs_little(kind: str, chat: Chat) -> None:
    found = await shell(chat, "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo end >&2", max_message_chars=1000)
    assert found.output == "x" * 1000
    async with hosting("sh", "-c", "while true; do echo xxxxxxxxxxxxxxxxxxxxxx; done") as hosted:
        await hosted.begin(NAME, PROMPT)
        running = asyncio.ensure_future(hosted.run(NAME, Access(chat.url, KEY)))
        await asyncio.sleep(1.0)
        assert "xxx" in await hosted.end(NAME)
        with pytest.raises(GroupLost, match="its session was ended"):
            await asyncio.wait_for(running, 10)


@pytest.mark.parametrize(
    "text",
    [
        "sleep 1000",
        "trap '' TERM INT HUP; while true; do sleep 1; done",
        "sleep 1000 & sleep 1000 & wait",
        "setsid sleep 1000 & sleep 1000",
        "(setsid sh -c 'sleep 1000' &) ; exec >/dev/null 2>&1; sleep 1000",
    ],
)
async def test_it_is_ended_with_all_that_it_started(kind: str, text: str, chat: Chat) -> None:
    async with hosting("sh", "-c", text) as hosted:
        await hosted.begin(NAME, PROMPT)
        running = asyncio.ensure_future(hosted.run(NAME, Access(chat.url, KEY)))
        await asyncio.sleep(0.7)
        started = time.monotonic()
        await hosted.end(NAME)
        assert time.monotonic() - started < 10
        with pytest.raises(GroupLost):
            await asyncio.wait_for(running, 10)
        assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "1000"]]


async def test_a_child_that_stays_behind_does_not_keep_its_agent_up(kind: str, chat: Chat) -> None:
    started = time.monotonic()
    found = await shell(chat, "(sleep 1001 &) ; echo done")
    assert found.output == "done\n"
    assert time.monotonic() - started < 20
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "1001"]]


async def test_so_many_run_at_once_and_others_wait(chat: Chat) -> None:
    async with hosting("sh", "-c", "sleep 0.5", processes=2) as hosted:
        names = [ConversationId("p", 0, k) for k in range(5)]
        begun: list[ConversationId] = []

        async def one(name: ConversationId) -> None:
            await hosted.begin(name, PROMPT)
            begun.append(name)
            await hosted.run(name, Access(chat.url, KEY))
            await hosted.end(name)

        tasks = [asyncio.ensure_future(one(name)) for name in names]
        await asyncio.sleep(0.2)
        assert len(begun) == 2
        hosted.resize(3)
        await asyncio.sleep(0.1)
        assert len(begun) == 3
        await asyncio.gather(*tasks)


async def test_a_run_that_was_never_begun_here_is_lost(chat: Chat) -> None:
    async with hosting("true") as hosted:
        with pytest.raises(GroupLost, match="did not begin here"):
            await hosted.run(NAME, Access(chat.url, KEY))
