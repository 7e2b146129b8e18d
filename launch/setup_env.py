"""Create .venv with the pinned stack. Run by the system's Python, standard library only; ``make`` calls it first.

``--accelerator cpu`` (default) installs requirements-cpu.lock exactly and never downloads a CUDA package;
``--accelerator cuda`` installs requirements-cuda.lock. uv installs, in a third of pip's time; where it is neither on
PATH nor to be had as a package, or fails, pip does. A stamp in .venv makes the second call return at once, and makes a
set-up that was cut short start over.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin/python"
STAMP = VENV / ".lpo-ray-stamp"
LOCKS = {"cpu": ROOT / "requirements-cpu.lock", "cuda": ROOT / "requirements-cuda.lock"}
DISK = {"cpu": "4 GB, 8 where uv's cache is on another disk", "cuda": "10 GB, 20 where uv's cache is on another disk"}
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
UV = "uv==0.13.8"
# What pip is told, and the variables in which uv takes the same. Several values: a space between them, or for
# find-links a comma.
SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "no-index": "UV_OFFLINE",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "trusted-host": "UV_INSECURE_HOST",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
}
SUPPORTED = ((3, 11), (3, 12))
PROBE = """
import importlib.metadata as m, torch
foreign = ("nvidia-", "cuda-", "torchvision", "torchaudio", "torchcodec")
bad = sorted(d.name for d in m.distributions() if d.name.lower().startswith(foreign))
assert not bad, f"packages that do not belong on the CPU path: {bad}"
assert torch.version.cuda is None, f"torch {torch.__version__} is a CUDA build"
import deepspeed, ray, vllm
from transformers import AutoConfig
"""


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def check_python(version: tuple[int, int]) -> None:
    """The lock is for these versions only."""
    if version not in SUPPORTED:
        wanted = " or ".join(".".join(map(str, supported)) for supported in SUPPORTED)
        raise SetupError(f"Python {version[0]}.{version[1]} was found; expected {wanted}: make PYTHON=python3.11 ...")


def check_folder(folder: Path) -> None:
    """Ray's own command lines do not quote the path of Python."""
    if any(map(str.isspace, str(folder))):
        raise SetupError(f"{folder} has white space in it, which Ray does not take; expected a folder without: move it")


def usable() -> bool:
    """Whether .venv was finished, and by this Python. Of one cut short, uv and pip would keep a half-copied package."""
    code = f"import pip, sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    return STAMP.exists() and subprocess.run([PYTHON, "-c", code], capture_output=True, check=False).returncode == 0


def empty() -> None:
    """Make .venv anew, with nothing but pip in it."""
    venv.create(VENV, with_pip=True, clear=VENV.exists())


def fingerprint(accelerator: str) -> str:
    """Hash what the environment was made from."""
    digest = hashlib.blake2b(f"{accelerator} {sys.version_info[:2]}".encode(), digest_size=16)
    for path in (LOCKS[accelerator], ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def locked(accelerator: str) -> tuple[str, list[str], str]:
    """torch, the rest, and deepspeed, as pinned in the lock."""
    lines = [line for line in LOCKS[accelerator].read_text().splitlines() if line and not line.startswith("#")]
    torch = next(line for line in lines if line.startswith("torch=="))
    deepspeed = next(line for line in lines if line.startswith("deepspeed=="))
    return torch, [line for line in lines if line not in (torch, deepspeed)], deepspeed


class Installer(NamedTuple):
    """``uv pip install`` or ``pip install``: what set-up asks of them is spelled the same way."""

    name: str
    command: list[str]
    environment: dict[str, str]

    def __call__(self, *arguments: str) -> None:
        """Install quietly. Raises SetupError with the tool's own last words."""
        try:
            finished = subprocess.run(
                [*self.command, *arguments], env=self.environment, capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise SetupError(f"{self.name} does not start: {error}") from error
        if finished.returncode:
            lines = (finished.stdout + finished.stderr).splitlines()
            said = [line for line in lines if line.strip() and "is ignored: it is neither" not in line]
            raise SetupError(f"{self.name} failed:\n  " + "\n  ".join(said[-8:]))


def pip() -> Installer:
    """The environment's own pip. No operator of DeepSpeed is compiled: none is needed."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar=off", "--quiet"]
    return Installer("pip", command, {**os.environ, "DS_BUILD_OPS": "0"})


def uv(folder: str) -> Installer:
    """Take uv from PATH, else the package, put into a folder."""
    found = shutil.which("uv")
    if not found:
        pip()("--no-deps", "--target", folder, UV)
        found = f"{folder}/bin/uv"
    # --project: [tool.uv] of pyproject.toml is for `uv sync`. --index-strategy: pip's.
    command = [found, "pip", "install", "--quiet", f"--python={PYTHON}", "--project=/"]
    command.append("--index-strategy=unsafe-best-match")
    return Installer("uv", command, {**settings_of_pip(), **pip().environment})


def settings_of_pip() -> dict[str, str]:
    """Read pip's settings of indexes, certificates and proxies, under the names that uv reads."""
    listed = subprocess.run([PYTHON, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    settings = {}
    for section in ("global.", "install.", ":env:."):  # the later one counts
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(section) and name[len(section) :] in SETTINGS:
                variable = SETTINGS[name[len(section) :]]
                settings[variable] = ("," if variable == "UV_FIND_LINKS" else " ").join(ast.literal_eval(value).split())
    return {variable: value for variable, value in settings.items() if value}


def install_stack(accelerator: str, install: Installer) -> None:
    """The lock, in three steps. --no-deps throughout: the lock is complete, see its header."""
    torch, rest, deepspeed = locked(accelerator)
    wanted = VENV / "requirements.txt"
    wanted.write_text("\n".join(rest) + "\n")
    say(f"torch ({accelerator.upper()} build), by {install.name}")
    try:
        install("--no-deps", torch)
    except SetupError:
        if accelerator != "cpu":
            raise
        # "+cpu" wheels are not on the ordinary index; this machine's own pip settings offered none either.
        install("--no-deps", torch, "--extra-index-url", PYTORCH_CPU_INDEX)
    say(f"{len(rest)} pinned packages")
    install("--no-deps", "-r", str(wanted))
    say("deepspeed")
    # Its set-up imports torch, so it is built in this environment.
    install("--no-deps", "--no-build-isolation", deepspeed, "-e", str(ROOT))


def fill(accelerator: str) -> None:
    """Install by uv, else by pip into an environment made anew."""
    try:
        with tempfile.TemporaryDirectory(dir=VENV) as folder:
            install_stack(accelerator, uv(folder))
        return
    except SetupError as error:
        say(f"pip takes over: {' '.join(str(error).split())[:300]}")
    empty()
    try:
        install_stack(accelerator, pip())
    except SetupError as error:
        raise SetupError(
            f"{error}\nCheck the network, the package index and free disk space ({DISK[accelerator]}), then run the "
            "same command again"
        ) from error


def check_imports() -> None:
    """The installed stack imports, and nothing of CUDA is beside it."""
    say("checking imports")
    # uv compiles nothing: this leaves the bytecode of what every start imports, a tenth of all that is there.
    writing = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    probe = subprocess.run([PYTHON, "-c", PROBE], env=writing, capture_output=True, text=True, check=False)
    if probe.returncode:
        raise SetupError(f"the installed stack does not import:\n{probe.stderr[-2000:]}")


def say(what: str) -> None:
    """One line for each stage."""
    print(f"[set-up {time.monotonic() - STARTED:5.0f} s] {what}", flush=True)


STARTED = time.monotonic()


def main() -> None:
    """Make the environment what the lock says, if it is not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cpu")
    accelerator = parser.parse_args().accelerator
    try:
        check_python(sys.version_info[:2])
        check_folder(VENV)
        wanted = fingerprint(accelerator)
        if STAMP.exists() and STAMP.read_text() == wanted:
            return
        say(f"making {VENV.name} with Python {sys.version.split()[0]}")
        reused = usable()
        STAMP.unlink(missing_ok=True)
        if not reused:
            empty()
        fill(accelerator)
        if accelerator == "cpu":
            check_imports()
        partial = STAMP.with_suffix(".partial")
        partial.write_text(wanted)
        partial.rename(STAMP)
        say("done")
    except SetupError as error:
        sys.exit(f"set-up failed: {error}")


if __name__ == "__main__":
    main()
