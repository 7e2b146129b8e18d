"""Programs of the distribution's packages, unpacked into a folder: nothing is installed on the machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

DOWNLOAD_SECONDS = 120


def program(name: str, package: str, folder: Path) -> Path | str:
    """The program on PATH, else out of the package, unpacked into ``folder``; the reason when it cannot be had."""
    if found := shutil.which(name):
        return Path(found)
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return f"{name} is not on PATH, and this distribution has no apt-get to take {package} from"
    try:
        got = subprocess.run(
            ["apt-get", "download", package], cwd=folder, capture_output=True, text=True, check=False,
            timeout=DOWNLOAD_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{name} is not on PATH, and apt-get download {package} took over {DOWNLOAD_SECONDS} s"
    archives = list(folder.glob(f"{package}_*.deb"))
    if not archives:
        return f"{name} is not on PATH, and apt-get download {package}: {got.stderr.strip()[-200:]}"
    subprocess.run(["dpkg-deb", "-x", archives[0], folder / package], check=True)
    return next((folder / package).glob(f"usr/*bin/{name}"))
