"""Chromium without a window, through its DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 60.0


class Browser:
    """One tab. ``problems``: what its console, its content policy and its uncaught exceptions said."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self.problems: list[str] = []
        self.requested: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=SECONDS))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._heard(message)

    def run(self, script: str) -> Any:
        """The value of an expression, which may be a promise."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def wait(self, script: str, seconds: float = SECONDS) -> Any:
        """The first value of the expression that is true."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if value := self.run(script):
                return value
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds:.0f} s: {script}\n{self.run('document.body.innerText')[:2000]}")

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def texts(self, selector: str) -> list[str]:
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((found) => found.innerText)")

    def fill(self, selector: str, value: str) -> None:
        """As a person types."""
        self.run(f"(found => {{ found.focus(); found.value = ''; }})(document.querySelector({json.dumps(selector)}))")
        self.call("Input.insertText", text=value)

    def click(self, selector: str) -> None:
        self.wait(f"document.querySelector({json.dumps(selector)}) !== null")
        self.run(f"(found => {{ found.focus(); found.click(); }})(document.querySelector({json.dumps(selector)}))")

    def screenshot(self, path: Path, width: int, height: int, scale: float = 1.0) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _heard(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(str(parameters["exceptionDetails"]))
            case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                self.problems.append(str(parameters["entry"]))
            case "Runtime.consoleAPICalled":
                self.problems.append(str(parameters["args"]))
            case "Network.requestWillBeSent":
                self.requested.append(parameters["request"]["url"])


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile is in ``folder``."""
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-extensions",
            "--remote-debugging-port=0", f"--user-data-dir={folder}", "--window-size=1280,900", "about:blank",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port = _port(folder / "DevToolsActivePort")
        with connect(f"ws://127.0.0.1:{port[0]}{port[1]}", max_size=None, open_timeout=SECONDS) as whole:
            whole.send(json.dumps({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}))
            while "result" not in (message := json.loads(whole.recv(timeout=SECONDS))):
                pass
            target = message["result"]["targetId"]
            with connect(
                f"ws://127.0.0.1:{port[0]}/devtools/page/{target}", max_size=None, open_timeout=SECONDS
            ) as tab:
                yield Browser(tab)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        process.kill()
        process.wait()


def _port(path: Path) -> list[str]:
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        with suppress(FileNotFoundError):
            lines = path.read_text().splitlines()
            if len(lines) == 2:
                return lines
        time.sleep(0.1)
    raise AssertionError(f"chromium has not written {path} within {SECONDS:.0f} s")
