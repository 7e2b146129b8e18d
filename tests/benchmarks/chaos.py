"""20 random SIGKILLs of driver, rollout worker, verifier process and learner rank over a whole quickstart.

PYTHONPATH=. .venv/bin/python tests/benchmarks/chaos.py OUT.json [--kills 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from lpo_ray.telemetry.sinks import MetricsLog
from lpo_ray.training.ledger_audit import audit
from tests.support.chaos import Chaos

QUICKSTART = Path(__file__).parent.parent.parent / "configs" / "quickstart.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lpo-ray-chaos-"))
    overrides = [f"run.dir={folder}", "run.name=chaos", "supervision.max_restarts=50", *arguments.overrides]
    chaos = Chaos(QUICKSTART, overrides, arguments.kills, arguments.seed)
    started = time.monotonic()
    code = chaos.run(limit=3000)
    run, books = folder / "chaos", audit(folder / "chaos")
    rows = MetricsLog(run / "metrics.jsonl").read()
    summary = json.loads((run / "summary.json").read_text())
    result = {
        "exit_code": code,
        "killed": dict(chaos.killed),
        "starts": chaos.starts,
        "wall_seconds": round(time.monotonic() - started),
        "steps_contiguous": [row["step"] for row in rows] == list(range(1, len(rows) + 1)),
        "steps": len(rows),
        "violations": list(books.violations),
        "attempts": dict(books.attempts),
        "prompts": dict(books.prompts),
        "evaluation": summary["evaluation"],
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
