"""Create .venv with the pinned stack. Run by the system's Python, standard library only; ``make`` calls it first.

``--accelerator cpu`` (default) installs requirements-cpu.lock exactly and never downloads a CUDA package;
``--accelerator cuda`` installs the [cuda] extra. A stamp in .venv makes the second call return at once, and makes a
set-up that was cut short start over.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".lpo-ray-stamp"
LOCK = ROOT / "requirements-cpu.lock"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
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


def usable() -> bool:
    """Whether .venv is of this Python and has pip; one that was cut short or made by another Python is not."""
    code = f"import pip, sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    python = VENV / "bin/python"
    return python.exists() and subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def fingerprint(accelerator: str) -> str:
    """What the environment was made from."""
    digest = hashlib.blake2b(f"{accelerator} {sys.version_info[:2]}".encode(), digest_size=16)
    for path in (LOCK, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def locked() -> tuple[str, list[str], str]:
    """torch, the rest, and deepspeed, as pinned in the lock."""
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    torch = next(line for line in lines if line.startswith("torch=="))
    deepspeed = next(line for line in lines if line.startswith("deepspeed=="))
    return torch, [line for line in lines if line not in (torch, deepspeed)], deepspeed


def pip(*arguments: str, environment: dict[str, str] | None = None) -> None:
    """Run the environment's pip quietly. Raises SetupError with pip's own last words."""
    command = [str(VENV / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar=off"]
    finished = subprocess.run(
        [*command, "--quiet", *arguments],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if finished.returncode:
        said = [
            line for line in finished.stdout.splitlines() if line.strip() and "is ignored: it is neither" not in line
        ]
        raise SetupError(
            "pip failed:\n  " + "\n  ".join(said[-8:]) + "\nCheck the network, the package index and free disk space "
            "(4 GB), then run the same command again"
        )


def install_cpu() -> None:
    """The lock, in three steps. --no-deps throughout: the lock is complete, see its header."""
    torch, rest, deepspeed = locked()
    wanted = VENV / "requirements.txt"
    wanted.write_text("\n".join(rest) + "\n")
    say("torch (CPU build)")
    try:
        pip("--no-deps", torch)
    except SetupError:
        # "+cpu" wheels are not on the ordinary index; this machine's own pip settings offered none either.
        pip("--no-deps", torch, "--extra-index-url", PYTORCH_CPU_INDEX)
    say(f"{len(rest)} pinned packages")
    pip("--no-deps", "-r", str(wanted))
    say("deepspeed")
    # Its set-up imports torch, so it is built in this environment; no operator is compiled, none is needed.
    pip("--no-deps", "--no-build-isolation", deepspeed, environment={"DS_BUILD_OPS": "0"})
    pip("--no-deps", "--no-build-isolation", "-e", str(ROOT))
    say("checking imports")
    probe = subprocess.run([VENV / "bin/python", "-c", PROBE], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise SetupError(f"the installed stack does not import:\n{probe.stderr[-2000:]}")


def install_cuda() -> None:
    """The [cuda] extra, resolved by pip: which CUDA packages fit is the machine's matter."""
    say("vllm and torch with CUDA")
    pip("vllm==0.32.0", "setuptools<81", "wheel", "ninja")
    pip("--no-build-isolation", locked()[2], environment={"DS_BUILD_OPS": "0"})
    pip("-e", f"{ROOT}[cuda,dev]")


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
        wanted = fingerprint(accelerator)
        if STAMP.exists() and STAMP.read_text() == wanted:
            return
        say(f"making {VENV.name} with Python {sys.version.split()[0]}")
        STAMP.unlink(missing_ok=True)
        if not usable():
            venv.create(VENV, with_pip=True, clear=VENV.exists())
        (install_cpu if accelerator == "cpu" else install_cuda)()
        partial = STAMP.with_suffix(".partial")
        partial.write_text(wanted)
        partial.rename(STAMP)
        say("done")
    except SetupError as error:
        sys.exit(f"set-up failed: {error}")


if __name__ == "__main__":
    main()
