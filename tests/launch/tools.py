"""Stand-ins for the tools that scripts call, and a way to run a script with them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

BASH = shutil.which("bash") or "/bin/bash"


@dataclass(frozen=True, slots=True)
class Tools:
    """A folder of programs, and the calls that were made to them."""

    folder: Path
    """goes onto PATH first"""
    record: Path

    @staticmethod
    def make(folder: Path) -> Tools:
        (folder / "bin").mkdir(parents=True)
        return Tools(folder / "bin", folder / "calls")

    def add(self, name: str, then: str = "") -> None:
        """A program that writes its name and arguments down, one line a call, and goes on with ``then``."""
        program = self.folder / name
        program.write_text(f'#!{BASH}\n{{ printf "%s\\t" "{name}" "$@"; echo; }} >> "{self.record}"\n{then}\n')
        program.chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        """Arguments of every call to ``name``, in order."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        words = [line.rstrip("\t").split("\t") for line in lines]
        return [call[1:] for call in words if call[0] == name]


def run_script(
    script: Path, *arguments: str, tools: Tools, environment: dict[str, str] | None = None, timeout: float = 60,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """The script's end: nothing of this process's Ray settings is passed on."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_", "LPO_RAY_"))}
    kept["PATH"] = f"{tools.folder}:{os.environ['PATH']}"
    return subprocess.run(
        [BASH, str(script), *arguments],
        env={**kept, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
    )
