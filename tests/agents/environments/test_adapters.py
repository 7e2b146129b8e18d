"""Environments of other systems, by classes of their exact shape; the examples of configs/environments."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpo_ray.agents.conversations import EnvironmentSettings, HostedEnvironments
from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.processes.launching import schemas_of
from lpo_ray.errors import ConfigError, GroupLost, Unscored
from lpo_ray.records import ConversationId, Observation, Prompt, Turn
from lpo_ray.tasks.base_policy import character_tokenizer
from lpo_ray.tasks.sources.source import PromptEncoder

EXAMPLES = Path(__file__).parents[3] / "configs" / "environments"
SHAPES = f"{Path(__file__).parents[2]}/support/foreign_environments.py"
TOKENIZER = character_tokenizer()
PROBLEM = Prompt(
    "p", TOKENIZER.encode("1,2,3=6:"), '{"numbers": [1, 2, 3], "target": 6}', "countdown", {"prompt": "1,2,3=6:"}
)


async def played(environment: str, *replies: str) -> tuple[str, list[Observation]]:
    """The first context as text, and the observations of a conversation."""
    settings = EnvironmentSettings(Hosted(environment=environment, processes=1, turn_seconds=20.0))
    hosted = HostedEnvironments(settings, TOKENIZER, PromptEncoder(TOKENIZER, "plain", 1000))
    name, found = ConversationId("p", 0, 0), []
    try:
        context = await hosted.open(name, PROBLEM)
        for reply in replies:
            ids = np.append(TOKENIZER.encode(reply), TOKENIZER.eos_token_id)
            turn = Turn(ids, np.zeros(len(ids), np.float32), np.zeros(len(ids), np.int64), "stop")
            found.append(await hosted.reply(name, turn))
        return TOKENIZER.show(context), found
    finally:
        await hosted.end(name)
        await hosted.close()


def told(observations: list[Observation]) -> list[str]:
    """What the policy was told, and the reward where one stands."""
    return [
        (TOKENIZER.show(each.appended_ids) if each.appended_ids is not None else "")
        + (f" {each.verdict.reward:g}" if each.verdict is not None else "")
        + (" done" if each.done else "")
        for each in observations
    ]


@pytest.mark.parametrize(
    ("environment", "replies", "context", "expected"),
    [
        (f"{EXAMPLES}/own.py:Guess", ["8", "5", "6"], "1,2,3=4:", ["-\n 0.333333", "+\n 0.5", " 1 done"]),
        (f"{EXAMPLES}/own.py:Guess", ["x"], "1,2,3=4:", [" 0 done"]),
        (f"{EXAMPLES}/skyrl_style.py:ShortEnv", ["1+2+3", "1+2+3+4+5+6"], "1,2,3=6:", ["=5\n 1", " 1 done"]),
        (f"{EXAMPLES}/trl_style.py:Counter", ["[1+2]", "[4]", "6"], "1,2,3=6:",
         ["noted 1\n 0.5", "noted 2\n 1", " 1 done"]),
        (f"{SHAPES}:GuessEnv", ["[7]", "6"], "1,2,3=6:Guess.", ["too high\n", " done"]),
        (f"{SHAPES}:PartsEnv", ["6"], "1,2,3=6:12", [" done"]),
        (f"{SHAPES}:load_environment", ["a", "bb"], "1,2,3=6:", ["=1\n", " 1 done"]),
        (f"{SHAPES}:load_openai_environment", ["a", "bb"], "1,2,3=6:", ["=1\n", " 1 done"]),
        (f"{SHAPES}:load_tools", ['[6]', "6"], "1,2,3=6:", ["12", " 1 done"]),
        (f"{SHAPES}:made", ["x"], "1,2,3=6:", [" 0.5 done"]),
    ],
)  # fmt: skip
async def test_it_plays_as_it_does_at_home(environment: str, replies: list, context: str, expected: list) -> None:
    first, observations = await played(environment, *replies)
    assert first == context
    assert told(observations) == expected


async def test_a_rollout_that_rewrites_its_history_opens_a_context() -> None:
    _, (found,) = await played(f"{SHAPES}:load_rewriting", "a")
    assert found.appended_ids is None and found.began == "the environment rewrote the history"
    assert found.context_ids is not None and TOKENIZER.show(found.context_ids) == "summary. go on"


async def test_a_rollout_that_ends_in_an_error_has_no_verdict() -> None:
    with pytest.raises(Unscored, match="ValueError: the tool broke"):
        await played(f"{SHAPES}:load_failing", "a")


async def test_a_reset_that_returns_an_image_is_unscored() -> None:
    with pytest.raises(Unscored, match=r"reset returned list .*; expected a text, or parts of type text"):
        await played(f"{SHAPES}:ImageEnv", "a")


def test_what_has_no_known_shape_is_refused_with_what_is_known() -> None:
    for name in ("Nothing", "load_number"):
        with pytest.raises(
            ConfigError, match=r"expected a subclass of lpo_ray.agents.Environment, or an environment of"
        ):
            schemas_of(f"{SHAPES}:{name}", ())


def test_the_tools_of_other_systems_are_described() -> None:
    (note,) = schemas_of(f"{EXAMPLES}/trl_style.py:Counter", ())
    assert note["function"]["name"] == "note"
    assert note["function"]["parameters"]["properties"] == {"text": {"type": "string", "description": "what to note"}}
    (double,) = schemas_of(f"{SHAPES}:load_tools", ())
    assert double == {"type": "function", "function": {"name": "double", "description": "", "parameters": {}}}


# --- servers ----------------------------------------------------------------------------------------------------------


@contextmanager
def serving() -> Iterator[int]:
    """The example's server, on a port of its own."""
    spec = importlib.util.spec_from_file_location("openenv_style", EXAMPLES / "openenv_style.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = ThreadingHTTPServer(("127.0.0.1", 0), module.Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def at(url: str, folder: Path) -> str:
    (folder / "env.py").write_text(
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\nfrom openenv_style import Echo\n"
        f"class Here(Echo):\n    url = {url!r}\n"
    )
    return f"{folder}/env.py:Here"


async def test_a_server_with_reset_and_step_is_played_over_http(tmp_path: Path) -> None:
    with serving() as port:
        first, found = await played(at(f"http://127.0.0.1:{port}", tmp_path), "short", "longer than ten")
    assert first == "1,2,3=6:=0\n"
    assert told(found) == ["=5\n 1", " 1 done"]


async def test_a_server_with_sessions_is_played_over_a_web_socket(tmp_path: Path) -> None:
    from websockets.asyncio.server import serve

    closed: list[bool] = []

    async def session(socket: Any) -> None:
        turns = 0
        async for text in socket:
            asked = json.loads(text)
            if asked == {"type": "close"}:
                closed.append(True)
                break
            if (code := asked["data"].get("message")) in ("EXECUTION_ERROR", "CAPACITY_REACHED"):
                await socket.send(json.dumps({"type": "error", "data": {"message": "it says so", "code": code}}))
                continue
            turns += asked["type"] == "step"
            length = len(asked["data"].get("message", ""))
            data = {"observation": {"length": length}, "reward": 0.5 if turns else None, "done": turns == 2}
            await socket.send(json.dumps({"type": "observation", "data": data}))

    async with serve(session, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        environment = at(f"ws://127.0.0.1:{port}/ws", tmp_path)
        _, found = await played(environment, "abc", "d")
        assert told(found) == ["=3\n 0.5", " 1 done"]
        for code, expected in (("EXECUTION_ERROR", Unscored), ("CAPACITY_REACHED", GroupLost)):
            with pytest.raises(expected, match="it says so") as lost:
                await played(environment, code)
            assert type(lost.value) is expected
        async with asyncio.timeout(10):
            while len(closed) < 3:  # environments are closed in the background
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("400 Bad Request", Unscored), ("422 Unprocessable", Unscored), ("429 Too Many Requests", GroupLost),
        ("408 Request Timeout", GroupLost), ("401 Unauthorized", GroupLost), ("404 Not Found", GroupLost),
        ("503 Unavailable", GroupLost), ("200 OK\r\nContent-Length: 99", GroupLost), ("", GroupLost),
    ],
)  # fmt: skip
async def test_only_a_refused_action_is_the_response_s_own_affair(
    answer: str, kind: type[GroupLost], tmp_path: Path
) -> None:
    """What else a server answers, or half an answer, loses the group."""

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n{{".encode() if answer else b"no HTTP\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answered, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(GroupLost) as lost:
            await played(at(f"http://127.0.0.1:{port}", tmp_path), "x")
    assert type(lost.value) is kind


@pytest.mark.parametrize("scheme", ["http", "ws"])
async def test_a_server_that_is_not_there_loses_the_group(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(GroupLost, match="cannot be asked to reset") as lost:
        await played(at(f"{scheme}://127.0.0.1:9", tmp_path), "x")
    assert not isinstance(lost.value, Unscored)
