"""One core for the engine, one for the learner: a step that takes turns against steps that overlap, and what it learns.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/overlap.py OUT.json [--steps 64]

"Sampling alone" and "learning alone" are the seconds of the stages in the synchronous run, where nothing else works.
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


def train(folder: Path, staleness: int, overrides: list[str]) -> dict[str, object]:
    name = f"staleness-{staleness}"
    command = [
        sys.executable, "-m", "lpo_ray", "train", str(CONFIG), f"run.dir={folder}", f"run.name={name}",
        f"pipeline.max_staleness={staleness}", *overrides,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = MetricsLog(folder / name / "metrics.jsonl").read()[WARM:]
    stages = ("sample", "verify", "anchor", "project", "publish", "wait", "checkpoint")
    return {
        "seconds": statistics.median(row["seconds"] for row in rows),
        **{stage: statistics.median(row[f"seconds_{stage}"] for row in rows) for stage in stages},
        "staleness": statistics.mean(row["staleness"] for row in rows),
        "stale_groups": rows[-1]["groups_stale"],
        "evaluation": json.loads((folder / name / "summary.json").read_text())["evaluation"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lpo-ray-overlap-"))
    runs = {n: train(folder, n, [f"run.steps={arguments.steps}", *arguments.overrides]) for n in (0, 1, 2)}
    alone = {"sampling": runs[0]["sample"] + runs[0]["verify"], "learning": runs[0]["anchor"] + runs[0]["project"]}
    result = {
        "alone": alone,
        "runs": runs,
        "to_the_slower_lane": {n: runs[n]["seconds"] / max(alone.values()) for n in (1, 2)},
        "faster_than_synchronous": {n: runs[0]["seconds"] / runs[n]["seconds"] for n in (1, 2)},
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
