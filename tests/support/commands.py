"""The command line, as a user calls it, and other commands that take as long as they must."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")


def lpo_ray(*arguments: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lpo_ray", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


def run_while_heard(
    command: Sequence[str | Path], seconds: float, *, environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """The command's end; stderr is in stdout. Raises TimeoutExpired when it has said nothing for ``seconds``: other
    work on this machine makes a command slow, but one that says what it does is not stuck.
    """
    words = [*map(str, command)]
    with subprocess.Popen(
        words, env=None if environment is None else dict(environment), cwd=cwd, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = b""
        while select.select([process.stdout], [], [], seconds)[0]:
            if not (more := os.read(process.stdout.fileno(), 65536)):
                return subprocess.CompletedProcess(words, process.wait(), said.decode(errors="replace"))
            said += more
        process.kill()
        error = subprocess.TimeoutExpired(words, seconds, said)
        error.add_note(f"its last words: {said[-2000:].decode(errors='replace')}")
        raise error
