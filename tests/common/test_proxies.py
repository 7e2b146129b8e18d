from __future__ import annotations

import os
import socket

import pytest

from lpo_ray.common.proxies import ask_directly, is_private, proxy_of, through

PROXY = "http://me:secret@proxy.example:3128"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("http_proxy", PROXY)
    known = {
        "inside.example": ["10.1.2.3"],
        "outside.example": ["93.184.216.34"],
        "both.example": ["10.1.2.3", "8.8.8.8"],
    }

    def look_up(host: str, port: object) -> list:
        if host not in known:
            raise socket.gaierror
        return [(0, 0, 0, "", (address, 0)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("127.0.0.1", True), ("localhost", True), ("rm.localhost", True), ("10.0.0.7", True), ("192.168.1.1", True),
        ("169.254.1.1", True), ("100.64.0.1", True), ("::1", True), ("fd00::1", True), ("reward-service", True),
        ("inside.example", True), ("both.example", False), ("outside.example", False), ("unknown.example", False),
        ("8.8.8.8", False), ("2606:4700::1111", False),
    ],
)  # fmt: skip
def test_hosts_of_this_machine_and_of_private_networks(host: str, private: bool) -> None:
    assert is_private(host) is private
    url = f"http://[{host}]:8000/x" if ":" in host else f"http://{host}:8000/x"
    assert proxy_of(url) == (None if private else PROXY)


def test_a_proxy_of_another_scheme_no_proxy_and_no_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_of("https://outside.example") is None
    monkeypatch.setenv("all_proxy", "proxy.example:1080")
    assert proxy_of("https://outside.example") == "http://proxy.example:1080"
    monkeypatch.setenv("no_proxy", "outside.example")
    assert proxy_of("http://outside.example") is None


def test_a_message_names_the_proxy_without_its_login() -> None:
    said = through(PROXY, "http://outside.example/x")
    assert "http://proxy.example:3128" in said
    assert "outside.example into no_proxy" in said
    assert "secret" not in said
    assert through(None, "http://outside.example") == ""


def test_libraries_that_read_the_environment_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "a.example")
    ask_directly("http://127.0.0.1:8265")
    ask_directly("http://127.0.0.1:8265")
    ask_directly("http://outside.example")
    assert os.environ["no_proxy"] == "a.example,127.0.0.1"
    monkeypatch.delenv("no_proxy")
