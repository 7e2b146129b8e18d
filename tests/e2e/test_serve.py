"""``lpo-ray serve`` on the real stack: asked by the APIs' own clients and by curl, ended by Ctrl-C."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import anthropic
import openai
import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]
KEY = "the-key-of-this-test"
ASKED = [{"role": "user", "content": "3 5 7: 15"}]
SECONDS = 240


def address_of(process: subprocess.Popen[bytes]) -> str:
    """Read what it prints until it says where it answers."""
    said, deadline = b"", time.monotonic() + SECONDS
    while b"ANTHROPIC_BASE_URL=" not in said:
        assert select.select([process.stderr], [], [], max(0, deadline - time.monotonic()))[0], said.decode()
        more = os.read(process.stderr.fileno(), 65536)
        assert more, said.decode()
        said += more
    assert KEY not in said.decode(), "a key that was given is not shown"
    return said.decode().partition("answers at ")[2].partition(";")[0]


def test_a_model_is_asked_by_both_clients_and_curl_until_it_is_ended(tiny_policy: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lpo_ray", "serve", str(tiny_policy), "--port", "0", "rollout.kv_cache_gib=0.2",
         f"run.dir={tmp_path}"],
        stderr=subprocess.PIPE, env={**os.environ, "LPO_RAY_SERVE_KEY": KEY},
    )  # fmt: skip
    try:
        url = address_of(process)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=60)
        raw = client.chat.completions.with_raw_response.create(model="m", messages=ASKED, max_tokens=8, logprobs=True)
        assert raw.headers["x-lpo-ray-weights"] == "0"
        first = raw.parse()
        logprobs = [token.logprob for token in first.choices[0].logprobs.content]
        assert 0 < len(logprobs) <= 8 and max(logprobs) <= 0
        again = client.chat.completions.create(model="m", messages=ASKED, max_tokens=8)
        assert again.choices[0].message.content == first.choices[0].message.content
        answered = {
            openai.OpenAI(base_url=f"{url}/v1", api_key=f"{KEY}/{n}", timeout=60)
            .chat.completions.create(model="m", messages=ASKED)
            .choices[0]
            .message.content
            for n in range(4)
        }
        assert len(answered) > 1, "each session has answers of its own"
        text = client.completions.create(model="m", prompt="1 2: ", max_tokens=20, stop=["1", "2", "3"])
        assert not any(digit in text.choices[0].text for digit in "123")
        claude = anthropic.Anthropic(base_url=url, api_key=KEY, timeout=60)
        with claude.messages.stream(model="m", messages=ASKED, max_tokens=9) as stream:
            assert stream.get_final_message().usage.output_tokens <= 9
        curl = subprocess.run(
            ["curl", "-sS", f"{url}/v1/responses", "-H", f"x-api-key: {KEY}", "-d", json.dumps({"input": "4 4: 8"})],
            capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        assert json.loads(curl.stdout)["status"] in ("completed", "incomplete")
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="another-key-of-mine", timeout=60).models.list()
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not psutil.wait_procs(children, timeout=30)[1], "nothing is left behind"
    finally:
        if process.poll() is None:
            process.kill()
