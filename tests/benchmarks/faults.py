"""Every role of a quickstart is killed or stopped while it trains: seconds until it is noticed, until the run is
whole again, and what the books say afterwards.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/faults.py OUT.json [--rounds 3]

"Noticed" is the first line of the run's log about it; "recovered" is the end of the first step that began after whoever
replaces it was back (so it holds up to one step's own time). A stopped process is noticed by a deadline, which is in
OVERRIDES.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lpo_ray.tasks.base_policy import Recipe, cached_base_policy, default_cache_dir
from lpo_ray.telemetry.log import LogLine, read_log
from lpo_ray.telemetry.sinks import MetricsLog
from lpo_ray.training.ledger_audit import audit
from tests.support.live_runs import Run, find

OVERRIDES = (
    "pipeline.groups_per_step=64", "sampling.group_size=8", "learner.world_size=2", "rollout.num_workers=2",
    "checkpoint.every=20", "run.steps=100000", "supervision.max_restarts=1000", "supervision.backoff_seconds=0",
    "transport.prepare_seconds=20", "rollout.silence_seconds=60", "learner.silence_seconds=30",
    "telemetry.progress=quiet",
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """``noticed``, ``back``: what the run's log says then."""

    name: str
    strike: Callable[[Run], None]
    noticed: str
    back: str


def to(actor: str, number: int, index: int = 0) -> Callable[[Run], None]:
    """Send a signal to a process of a role."""
    return lambda run: find(run, actor)[index].send_signal(number)


def verifier_process(run: Run) -> None:
    below = find(run, "VerifierService")[0].children(recursive=True)
    next(process for process in below if not process.children()).kill()


FAULTS = (
    Fault("rollout worker, SIGKILL", to("RolloutWorker", signal.SIGKILL), "rollout worker . is taken out",
          "rollout worker . (serves|is up)"),
    Fault("rollout worker, SIGSTOP", to("RolloutWorker", signal.SIGSTOP), "rollout worker . is taken out",
          "rollout worker . (serves|is up)"),
    Fault("verifier service, SIGKILL", to("VerifierService", signal.SIGKILL), "verifier service is replaced",
          "verifier service is back"),
    Fault("target builder, SIGKILL", to("TargetBuilder", signal.SIGKILL), "target builder is replaced",
          "target builder is back"),
    Fault("learner rank, SIGKILL", to("LearnerWorker", signal.SIGKILL, 1), "ranks are started again",
          "the learner is back"),
    Fault("learner rank, SIGSTOP", to("LearnerWorker", signal.SIGSTOP, 1), "ranks are started again",
          "the learner is back"),
    Fault("verifier process, SIGKILL", verifier_process, "", ""),
)  # fmt: skip


def lines_after(run: Run, moment: float) -> list[LogLine]:
    return [line for line in read_log(run.folder / "log.jsonl") if line.time >= moment]


def first(run: Run, since: float, pattern: str, limit: float = 240) -> float:
    """Unix seconds of the first line after ``since`` that matches."""
    deadline = time.monotonic() + limit
    while True:
        found = next((line.time for line in lines_after(run, since) if re.search(pattern, line.text)), None)
        if found is not None:
            return found
        assert time.monotonic() < deadline, f"no {pattern!r} in {limit:.0f} s"
        time.sleep(0.05)


def one(run: Run, fault: Fault) -> dict[str, float]:
    reached = run.steps()[-1]
    run.wait_for_step(reached + 2)
    time.sleep(0.7)  # in the middle of a step
    lost = audit(run.folder).attempts["lost"]
    struck = time.time()
    fault.strike(run)
    noticed = first(run, struck, fault.noticed) if fault.noticed else struck
    back = first(run, noticed, fault.back) if fault.back else struck
    ended = first(run, back, r"^step \d+/")
    recovered = first(run, ended + 1e-4, r"^step \d+/") if fault.back else ended
    return {"noticed": noticed - struck, "back": back - struck, "recovered": recovered - struck,
            "attempts_issued_again": audit(run.folder).attempts["lost"] - lost}  # fmt: skip


def driver(folder: Path, policy: Path) -> dict[str, float]:
    """Kill the driver; its user runs the same command again."""
    with Run(folder, policy, *OVERRIDES) as run:
        run.wait_for_step(5)
        time.sleep(0.7)
        run.process.kill()
        run.process.wait()
        reached, struck = run.steps()[-1], time.time()
    with Run(folder, policy, *OVERRIDES, "run.resume=auto") as again:
        again.wait_for_step(reached + 1)
        recovered = time.time() - struck
        again.process.terminate()
        again.process.wait(120)
    books = audit(again.folder)
    steps = [row["step"] for row in MetricsLog(again.folder / "metrics.jsonl").read()]
    assert not books.violations and steps == list(range(1, len(steps) + 1))
    return {"noticed": 0.0, "back": recovered, "recovered": recovered, "attempts_issued_again": books.attempts["lost"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lpo-ray-faults-"))
    policy = cached_base_policy(default_cache_dir(), Recipe())
    found: dict[str, list[dict[str, float]]] = {fault.name: [] for fault in FAULTS}
    with Run(folder, policy, *OVERRIDES) as run:
        run.wait_for_step(3)
        for _ in range(arguments.rounds):
            for fault in FAULTS:
                found[fault.name].append(one(run, fault))
                sys.stderr.write(f"{fault.name}: {found[fault.name][-1]}\n")
        run.process.terminate()
        run.process.wait(120)
        books = audit(run.folder)
        steps = run.steps()
    found["driver, SIGKILL, and the same command again"] = [driver(folder / "driver", policy)]
    result = {
        "rows": {
            name: {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
            for name, samples in found.items()
        },
        "samples": found,
        "steps_contiguous": steps == list(range(1, len(steps) + 1)),
        "violations": list(books.violations),
        "trained": books.attempts["trained"],
        "steps": len(steps),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result["rows"], indent=2) + "\n")


if __name__ == "__main__":
    main()
