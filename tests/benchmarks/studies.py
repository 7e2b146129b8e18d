"""Runs studies of configs/results/studies.yaml with ``lpo-ray compare`` and keeps what came out beside that file.

PYTHONPATH=. .venv/bin/python tests/benchmarks/studies.py --work runs/studies countdown adaptive

The same command goes on after a kill, and takes what another study under ``--work`` has run with the same configuration
from there. ``--keep`` only keeps what a study has by now. A study is up to an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import yaml

from lpo_ray.config import dump_config, load_config
from lpo_ray.config.schema import Config
from lpo_ray.tools.compare.grid import arms_of, axes_of
from lpo_ray.tools.compare.outcome import is_finished
from lpo_ray.tools.compare.study import only_length, runs_of

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "configs" / "results"
KEPT = {"comparison.md": ".md", "comparison.json": ".json", "curves.png": ".png", "trades.png": "-trades.png"}


def command(study: dict, out: Path, parallel: int | None) -> list[str]:
    """Of one study."""
    grid = [part for text in study["grid"] for part in ("--grid", text)]
    more = [] if parallel is None else ["--parallel", str(parallel)]
    return [
        sys.executable, "-m", "lpo_ray", "compare", str(ROOT / study["config"]), "--seeds", str(study["seeds"]),
        "--out", str(out), *more, *grid,
    ]  # fmt: skip


def take_from_others(study: dict, out: Path, work: Path) -> None:
    """Copy the runs of ``study`` that are finished in another study's folder and not begun in its own, ``out``."""
    axes, overrides = axes_of(study["grid"])
    path = ROOT / study["config"]
    arms = arms_of(axes, load_config(path, overrides).objective.divergence)
    found = {_identity(load_config(file)): file.parent for file in work.glob("*/runs/*/config.yaml")}
    for run in runs_of(path, overrides, arms, study["seeds"], out):
        other = found.get(_identity(run.config))
        if other is not None and not run.folder.exists() and is_finished(other, run.config.run.steps):
            shutil.copytree(other, run.folder)
            sys.stdout.write(f"{run.name}: taken from {other}\n")


def _identity(config: Config) -> str:
    return dump_config(replace(config, run=only_length(config)))


def keep(name: str, title: str, out: Path, kept: Path) -> None:
    """Put the tables, the numbers and the picture of a study into ``kept``, under its name."""
    for file, suffix in KEPT.items():
        if not (out / file).exists():
            raise SystemExit(f"{out} has no {file} yet; expected a study that has finished: run it without --keep")
        shutil.copyfile(out / file, kept / f"{name}{suffix}")
    page = kept / f"{name}.md"
    text = page.read_text(encoding="utf-8").split("\n", 1)[1].replace("curves.svg", f"{name}.png")
    text = text.replace("trades.svg", f"{name}-trades.png")
    page.write_text(f"# {title}\n{text}", encoding="utf-8")


def main() -> None:
    """See above."""
    studies = yaml.safe_load((RESULTS / "studies.yaml").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(studies)}; all if none is given")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "studies", help="where the runs are")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the pages go")
    parser.add_argument("--parallel", type=int, help="runs at once; as many as fit if not given")
    parser.add_argument("--keep", action="store_true", help="run nothing")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in studies]:
        parser.error(f"{unknown[0]!r} is no study; expected some of {', '.join(studies)}")
    for name in asked.names or studies:
        study, out = studies[name], asked.work / name
        if not asked.keep:
            take_from_others(study, out, asked.work)
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run(command(study, out, asked.parallel), check=True, env=environment)
        keep(name, study["title"], out, asked.results)


if __name__ == "__main__":
    main()
