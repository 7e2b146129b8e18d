"""The way from a sandbox without a network to the endpoint: a local port leads to a Unix socket from outside.

Run as a program: ``bridge.py SOCKET PORT COMMAND...``. It ends as the command does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

CHUNK = 2**16


def pump(source: socket.socket, target: socket.socket) -> None:
    """Hand on what one says to the other, until it says no more."""
    try:
        while data := source.recv(CHUNK):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for end, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
            with contextlib.suppress(OSError):
                end.shutdown(how)


def serve(listening: socket.socket, path: str) -> None:
    """Connect whoever asks."""
    while True:
        inner, _ = listening.accept()
        outer = socket.socket(socket.AF_UNIX)
        try:
            outer.connect(path)
        except OSError:
            inner.close()
            outer.close()
            continue
        for ends in ((inner, outer), (outer, inner)):
            threading.Thread(target=pump, args=ends, daemon=True).start()


def main(path: str, port: str, command: list[str]) -> int:
    """Serve until the command has ended; returns its exit code, 128 + n when signal n ended it."""
    listening = socket.create_server(("127.0.0.1", int(port)), backlog=128)
    threading.Thread(target=serve, args=(listening, path), daemon=True).start()
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda sent, _: process.send_signal(sent))
    code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
