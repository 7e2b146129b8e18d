"""Seconds that set-up takes by pip and by uv, and the first import of what it installed.

    .venv/bin/python tests/benchmarks/setup_env.py OUT.json [--repeats 2] [--folder /tmp]

Each set-up is launch/setup_env.py of the last commit, whole, into an empty .venv of a clone: venv, installation, import
check. Ways take turns. "cold": nothing of it was downloaded before, uv itself neither; "warm": the same again. "uv,
compiled": with UV_COMPILE_BYTECODE=1 uv compiles every file at once, as pip does. All end with the same packages, which
is checked.

The first import comes after the import check, in a process of its own; bytecode that is missing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Where "uv" is not wanted, pip stands in for it from the beginning, not after a failure.
BY_PIP = "import sys; sys.path.insert(0, 'launch'); import setup_env as s; s.uv = lambda folder: s.pip(); s.main()"
BY_UV = "import sys; sys.path.insert(0, 'launch'); import setup_env as s; s.main()"
WAYS = {"pip": (BY_PIP, {}), "uv": (BY_UV, {}), "uv, compiled": (BY_UV, {"UV_COMPILE_BYTECODE": "1"})}
IMPORT = "import ray, vllm, deepspeed"
PACKAGES = "import importlib.metadata as m; print(sorted((d.name, d.version) for d in m.distributions()))"


def environment(way: str, caches: Path) -> dict[str, str]:
    """This machine's variables, with caches of the way's own, no uv on PATH, and leave to write bytecode."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")}
    found = shutil.which("uv")
    folders = [folder for folder in kept["PATH"].split(os.pathsep) if not found or folder != str(Path(found).parent)]
    own = {"PIP_CACHE_DIR": str(caches / way / "pip"), "UV_CACHE_DIR": str(caches / way / "uv")}
    return {**kept, **own, **WAYS[way][1], "PATH": os.pathsep.join(folders)}


def seconds(command: list[str], clone: Path, variables: dict[str, str]) -> tuple[float, str]:
    """How long a command took, and what it printed."""
    started = time.perf_counter()
    finished = subprocess.run(command, cwd=clone, env=variables, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(finished.stdout + finished.stderr)
    return time.perf_counter() - started, finished.stdout


def one(way: str, clone: Path, caches: Path) -> tuple[dict[str, float], str]:
    """One set-up and the first import after it; the packages that are there then."""
    variables = environment(way, caches)
    if (clone / ".venv").exists():
        shutil.rmtree(clone / ".venv")
    python = str(clone / ".venv/bin/python")
    setup, said = seconds([f"{sys.base_prefix}/bin/python3", "-c", WAYS[way][0]], clone, variables)
    sys.stdout.write(f"{way}:\n{said}")
    first, _ = seconds([python, "-c", IMPORT], clone, variables)
    return {"setup": setup, "first import": first}, seconds([python, "-c", PACKAGES], clone, variables)[1]


def measure(repeats: int, folder: str | None) -> dict[str, dict[str, dict[str, list[float]]]]:
    rows: dict[str, dict[str, dict[str, list[float]]]] = {way: {"cold": {}, "warm": {}} for way in WAYS}
    with tempfile.TemporaryDirectory(dir=folder) as made:
        clone, caches = Path(made) / "clone", Path(made) / "caches"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        packages = set()
        for _ in range(repeats):
            for way, row in rows.items():
                shutil.rmtree(caches / way, ignore_errors=True)
                for kind in ("cold", "warm"):
                    found, there = one(way, clone, caches)
                    packages.add(there)
                    for name, value in found.items():
                        row[kind].setdefault(name, []).append(round(value, 2))
    assert len(packages) == 1, "the ways installed different packages"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", help="where the clone and the caches lie, on one file system (8 GB)")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    rows = measure(arguments.repeats, arguments.folder)

    def ratio(way: str, kind: str) -> dict[str, float]:
        """Of medians: set-up alone, and with the first import."""
        medians = [{name: statistics.median(found) for name, found in rows[by][kind].items()} for by in (way, "pip")]
        ours, pips = ({**found, "both": sum(found.values())} for found in medians)
        return {name: round(ours[name] / pips[name], 3) for name in ("setup", "both")}

    found = {
        "date": datetime.now().isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load_at_start": load},
        "python": platform.python_version(),
        "repeats": arguments.repeats,
        "seconds": rows,
        "ratio to pip": {way: {kind: ratio(way, kind) for kind in ("cold", "warm")} for way in WAYS if way != "pip"},
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
