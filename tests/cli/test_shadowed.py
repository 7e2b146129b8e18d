"""A working folder with folders and files that have the names of packages: with ``python -m`` and without."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
STARTS = ["python -m", "lpo-ray"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder, in which the program itself does not lie."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def lpo_ray(start: str, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = cwd.with_name("lpo-ray")
    script.write_text("from lpo_ray.cli import main\nmain()\n")  # as pip makes it
    command = [sys.executable, *(["-m", "lpo_ray"] if start == "python -m" else [str(script)]), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONSAFEPATH", None)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("start", STARTS)
def test_the_names_of_packages_in_the_working_folder_shadow_none(folder: Path, start: str) -> None:
    for name in ("torch", "transformers", "omegaconf", "rich", "random", "actors"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('the folder has shadowed {name}')\n")
    for name in ("numpy", "wandb", "datasets", "yaml", "lpo_ray"):
        (folder / name).mkdir()
    finished = lpo_ray(start, folder, "train", QUICKSTART, "--dry-run")
    assert finished.returncode == 0, finished.stderr
    assert list(folder.glob("__pycache__")) == []


@pytest.mark.parametrize("start", STARTS)
def test_a_folder_named_datasets_is_not_the_package(folder: Path, start: str) -> None:
    if importlib.util.find_spec("datasets") is not None:
        pytest.skip("datasets is installed here")
    (folder / "datasets").mkdir()
    finished = lpo_ray(
        start,
        folder,
        "data",
        QUICKSTART,
        "task.name=dataset",
        "task.path=team/sums",
        "task.verifier=exact",
        "evaluation.num_prompts=0",
    )
    assert finished.returncode == 2, finished.stderr
    assert "needs `pip install datasets`" in finished.stderr
    assert "Traceback" not in finished.stderr


AS_INSTALLED = "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'Editable' not in repr(finder)]"


def test_where_another_package_actors_comes_first_train_says_so(tmp_path: Path) -> None:
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "__init__.py").write_text("")
    (tmp_path / "sitecustomize.py").write_text(AS_INSTALLED)  # an editable one would find our modules beside it
    finished = subprocess.run(
        [sys.executable, "-m", "lpo_ray", "train", QUICKSTART, f"run.dir={tmp_path}"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    assert finished.returncode == 1
    [said] = finished.stderr.strip().splitlines()
    assert "'actors'" in said or "'actors.cluster'" in said
    assert said.endswith("; expected a stack that imports: see what lpo-ray doctor says of it")
