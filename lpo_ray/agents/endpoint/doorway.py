"""An address that outlives whoever serves it.

The doorway holds a listening socket, and gives it to each endpoint that asks. While an endpoint is being replaced, its
agents' connections wait in the socket's queue: none is refused, and no client has to ask again for more than what was
under way. Standard library only.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from pathlib import Path

BACKLOG = 1024
"""connections that wait to be accepted"""
SECONDS = 10.0
"""in which a doorway gives its socket"""


class Doorway:
    """Holder of a listening socket, in a process that lives as long as the address should."""

    def __init__(self, host: str, port: int = 0) -> None:
        """Listen. Raises OSError for an address that is taken."""
        self._listening = listen(host, port)
        self.port = int(self._listening.getsockname()[1])
        self._folder = Path(tempfile.mkdtemp(prefix="lpo-ray-doorway-"))  # nobody else may enter it
        self.path = str(self._folder / "socket")
        """where the socket is asked for, on this machine"""
        self._asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._asked.bind(self.path)
        self._asked.listen()
        threading.Thread(target=self._give, name="doorway", daemon=True).start()

    def _give(self) -> None:
        while True:
            try:
                asking, _ = self._asked.accept()
            except OSError:
                return  # closed
            with asking, contextlib.suppress(OSError):  # it is gone again
                socket.send_fds(asking, [b"."], [self._listening.fileno()])

    def close(self) -> None:
        """Give up the address."""
        with contextlib.suppress(OSError):
            self._asked.shutdown(socket.SHUT_RDWR)
        self._asked.close()
        self._listening.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def enter(path: str) -> socket.socket:
    """Return the listening socket of the doorway at ``path``. Raises OSError without one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(SECONDS)
        asking.connect(path)
        _, found, _, _ = socket.recv_fds(asking, 1, 1)
    if not found:
        raise OSError(f"the doorway at {path} gave no socket")
    return socket.socket(fileno=found[0])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address. Raises OSError for one that is taken."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening
