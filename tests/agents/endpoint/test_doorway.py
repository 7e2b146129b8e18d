"""An address outlives whoever serves it: connections wait for the next one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lpo_ray.agents.endpoint.doorway import Doorway, enter


def test_connections_wait_for_the_next_who_serves() -> None:
    doorway = Doorway("127.0.0.1")
    try:
        first = enter(doorway.path)
        assert first.getsockname()[1] == doorway.port
        first.close()  # it died
        with socket.create_connection(("127.0.0.1", doorway.port), timeout=5) as client:
            client.sendall(b"early")
            second = enter(doorway.path)
            second.settimeout(5)
            accepted, _ = second.accept()
            with accepted, second:
                assert accepted.recv(5) == b"early"
    finally:
        doorway.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", doorway.port), timeout=5)
    with pytest.raises(OSError, match="No such file"):
        enter(doorway.path)
    assert not Path(doorway.path).parent.exists()


def test_an_address_that_is_taken_is_told(tmp_path: Path) -> None:
    doorway = Doorway("127.0.0.1")
    with pytest.raises(OSError, match="in use"):
        Doorway("127.0.0.1", doorway.port)
    assert Path(doorway.path).parent.stat().st_mode & 0o077 == 0, "nobody else may ask for it"
    doorway.close()
