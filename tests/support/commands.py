"""The command line, as a user calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")


def lpo_ray(*arguments: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lpo_ray", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
