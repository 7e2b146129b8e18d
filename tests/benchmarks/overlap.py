"""One core for the engine, one for the learner: a step that takes turns against steps that overlap, and what it learns.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/overlap.py OUT.json [--steps 64] [--rounds 2]

"Sampling alone" and "learning alone" are the seconds of the stages in the synchronous run, where nothing else works.
What is timed are short runs in turn, since this machine is not equally fast for ten minutes; what they learn is seen in
long ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from lpo_ray.telemetry.sinks import MetricsLog

CONFIG = Path(__file__).parent.parent.parent / "configs" / "quickstart_async.yaml"
WARM = 5
"""steps that fill the lanes, left out"""
STAGES = ("sample", "verify", "anchor", "project", "publish", "wait", "checkpoint")


def train(folder: Path, name: str, staleness: int, overrides: list[str]) -> list[dict[str, float]]:
    command = [
        sys.executable, "-m", "lpo_ray", "train", str(CONFIG), f"run.dir={folder}", f"run.name={name}",
        f"pipeline.max_staleness={staleness}", *overrides,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return MetricsLog(folder / name / "metrics.jsonl").read()[WARM:]


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    timed = ("seconds", *(f"seconds_{stage}" for stage in STAGES))
    found = {name: statistics.median(row[name] for row in rows) for name in timed}
    return {**found, "staleness": statistics.mean(row["staleness"] for row in rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=64, help="of the runs that are evaluated")
    parser.add_argument("--rounds", type=int, default=2, help="of short runs in turn, which are timed")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lpo-ray-overlap-"))
    short = ["run.steps=22", "evaluation.num_prompts=0", "checkpoint.every=1000", *arguments.overrides]
    rounds = []
    for number in range(arguments.rounds):
        runs = {n: medians(train(folder, f"timed-{number}-{n}", n, short)) for n in (0, 1, 2)}
        alone = {
            "sampling": runs[0]["seconds_sample"] + runs[0]["seconds_verify"],
            "learning": runs[0]["seconds_anchor"] + runs[0]["seconds_project"],
        }
        rounds.append(
            {
                "alone": alone,
                "runs": runs,
                "to_the_slower_lane": {n: runs[n]["seconds"] / max(alone.values()) for n in (1, 2)},
                "faster_than_synchronous": {n: runs[0]["seconds"] / runs[n]["seconds"] for n in (1, 2)},
            }
        )
    evaluated = {}
    for n in (0, 1, 2):
        rows = train(folder, f"staleness-{n}", n, [f"run.steps={arguments.steps}", *arguments.overrides])
        summary = json.loads((folder / f"staleness-{n}" / "summary.json").read_text())
        evaluated[n] = {**medians(rows), "evaluation": summary["evaluation"]}
    result = {"rounds": rounds, "evaluated": evaluated}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
