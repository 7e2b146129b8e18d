"""Programs of the distribution's packages, unpacked into a folder: nothing is installed on the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

DOWNLOAD_SECONDS = 120
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unpacked(packages: Sequence[str], folder: Path, release: str | None = None) -> Path | str:
    """The root folder that the packages make, without what they need; the reason when one cannot be had. Of another
    ``release`` of the distribution if its name is given.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return f"this distribution has no apt-get to take {', '.join(packages)} from"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        settings = _apt_of(release, folder) if release else {}
        _run(["apt-get", "download", *packages], folder, settings)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return f"{' '.join(map(str, error.cmd))}: {(error.stderr or 'it took too long').strip()[-200:]}"
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, folder / "root"], check=True)
        archive.unlink()
    return folder / "root"


def _run(command: Sequence[str], folder: Path, settings: Mapping[str, str]) -> str:
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True, check=True,
        timeout=DOWNLOAD_SECONDS,
    ).stdout  # fmt: skip


def _apt_of(release: str, folder: Path) -> dict[str, str]:
    """An apt of its own, with the mirror and the keys of this machine's: what it reads is in ``folder``."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    mirror, *_ = [*_run(asked, folder, {}).splitlines(), "no-mirror-is-known:"]
    signed = f"[signed-by={KEYS}] " if Path(KEYS).exists() else ""
    (folder / "sources").write_text(f"deb {signed}{mirror} {release} main\n")
    for name in ("lists", "cache"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "apt.conf").write_text(
        f'Dir::State::lists "{folder}/lists"; Dir::Cache "{folder}/cache"; Dir::Etc::sourcelist "{folder}/sources";\n'
        'Dir::Etc::sourceparts "-"; APT::Sandbox::User "root";\n'
    )
    settings = {"APT_CONFIG": str(folder / "apt.conf")}
    _run(["apt-get", "update", "--error-on=any"], folder, settings)
    return settings


def program(name: str, package: str, folder: Path) -> Path | str:
    """The program on PATH, else out of the package, unpacked into ``folder``; the reason when it cannot be had."""
    if found := shutil.which(name):
        return Path(found)
    root = unpacked([package], folder / package)
    return f"{name} is not on PATH, and {root}" if isinstance(root, str) else next(root.glob(f"usr/*bin/{name}"))
