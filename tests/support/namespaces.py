"""A machine inside this machine, for daemons that a test starts: its processes, mounts and network are its own and
end with it. Files are this machine's. For root on Linux.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import run_while_heard

ENTRY = """
mount --make-rprivate /
mount -t proc proc /proc
if [ -n "$ADDRESS" ]; then
    ip link set lo up
    ip link add switch type bridge
    ip address add "$ADDRESS/24" dev switch
    ip link set switch up
fi
while [ $# -gt 0 ]; do mount --bind "$1" "$2"; shift 2; done
echo ready
while :; do sleep infinity; done # not exec: the first process buries those whose parent has ended, and sleep would not
"""
HOST = """
network() { readlink "/proc/$1/ns/net"; }
unshare --net --uts sh -ec '
    until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
    ip link set lo up
    ip address add "$1/24" dev eth0
    ip link set eth0 up
    hostname "$0"
    shift
    exec "$@"
' "$@" &
while [ "$(network $!)" = "$(network $$)" ]; do sleep 0.05; done
ip link add "$1" type veth peer name eth0 netns $!
ip link set "$1" master switch up
wait
"""


def missing() -> str | None:
    """Why there can be none here."""
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            return f"needs {tool} on PATH"
    command = ["unshare", "--mount", "--pid", "--net", "--fork", "mount", "-t", "proc", "proc", "/proc"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"this machine allows no namespaces: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True, slots=True)
class Inside:
    """The machine inside, known by its first process."""

    enter: tuple[str, ...]
    """goes before a command that runs there"""
    environment: Mapping[str, str]

    def run(
        self, *command: str | Path, timeout: float = 60, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """As ``run_while_heard``, there."""
        entered = [*self.enter, f"--wdns={cwd or '/'}", *command]
        return run_while_heard(entered, timeout, environment=self.environment)

    def start(self, log: Path, *command: str | Path) -> subprocess.Popen[bytes]:
        """A daemon that ends with the machine."""
        with log.open("w") as file:
            return subprocess.Popen(
                [*self.enter, *map(str, command)], env=dict(self.environment), stdin=subprocess.DEVNULL, stdout=file,
                stderr=file, start_new_session=True,
            )  # fmt: skip


@contextlib.contextmanager
def inside(environment: Mapping[str, str], binds: Mapping[Path, str], address: str | None = None) -> Iterator[Inside]:
    """The machine until the end of the context. ``binds``: a file or folder here, and the path that it has there. With
    an ``address`` it has a network of its own, else it shares this machine's.
    """
    kinds = ["--mount", "--pid", *(["--net"] if address else [])]
    words: Sequence[str] = [word for pair in binds.items() for word in map(str, pair)]
    with subprocess.Popen(
        ["unshare", *kinds, "--fork", "--kill-child", "--", "sh", "-ec", ENTRY, "sh", *words], text=True,
        env={**os.environ, "ADDRESS": address or ""}, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "ready\n", "no namespaces"
            first = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()[0]
            yield Inside(("nsenter", f"--target={first}", *kinds), dict(environment))
        finally:
            holder.kill()


def host(name: str, address: str) -> tuple[str, ...]:
    """Goes before a command inside: it runs on a host of this name, at an address beside the machine's."""
    return ("sh", "-ec", HOST, "sh", name, address)


def wait_until(
    what: str, holds: Callable[[], bool], seconds: float, heard: Callable[[], Hashable] | None = None
) -> None:
    """Ask ``holds`` until it says yes. Raises AssertionError with ``what`` after ``seconds``, or if ``heard`` is given,
    after as long without a new value of it.
    """
    last, since = heard and heard(), time.monotonic()
    while not holds():
        if heard and (now := heard()) != last:
            last, since = now, time.monotonic()
        assert time.monotonic() < since + seconds, f"{what}: not within {seconds:.0f} s{' of news' if heard else ''}"
        time.sleep(0.5)
