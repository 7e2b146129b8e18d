"""Programs of the distribution's packages, unpacked into a folder: nothing is installed on the machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

DOWNLOAD_SECONDS = 120


def unpacked(packages: Sequence[str], folder: Path) -> Path | str:
    """The root folder that the packages make, without what they need; the reason when one cannot be had."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return f"this distribution has no apt-get to take {', '.join(packages)} from"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        got = subprocess.run(
            ["apt-get", "download", *packages], cwd=folder, capture_output=True, text=True, check=False,
            timeout=DOWNLOAD_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"apt-get download {' '.join(packages)} took over {DOWNLOAD_SECONDS} s"
    if got.returncode:
        return f"apt-get download {' '.join(packages)}: {got.stderr.strip()[-200:]}"
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, folder / "root"], check=True)
        archive.unlink()
    return folder / "root"


def program(name: str, package: str, folder: Path) -> Path | str:
    """The program on PATH, else out of the package, unpacked into ``folder``; the reason when it cannot be had."""
    if found := shutil.which(name):
        return Path(found)
    root = unpacked([package], folder / package)
    return f"{name} is not on PATH, and {root}" if isinstance(root, str) else next(root.glob(f"usr/*bin/{name}"))
