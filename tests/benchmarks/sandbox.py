"""What hostile programs get in each kind of sandbox, and what a good one costs.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/sandbox.py OUT.json

Prints a table in Markdown: for each program of tests/support/hostile_programs.py how it ended, the rewards it got, and
how many processes of it were left a second later.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from lpo_ray.verifiers.sandbox import kinds
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.sandbox.process import NAME, Program
from lpo_ray.verifiers.sandbox.program import ProgramResult, missing, run_program, trouble_with
from lpo_ray.verifiers.unit_tests.verifier import unit_tests
from tests.support.hostile_programs import EXPECTED, HOSTILE, MARKER, planted

SECONDS = 2.0
REPEATS = 30


def processes_left() -> int:
    """Of any sandbox."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        count += NAME.encode() in line.split(b"\0") or MARKER.encode() in line.split(b"\0")
    return count


def ending(outcome: ProgramResult) -> str:
    """In a few words."""
    if outcome.trouble:
        return f"TROUBLE: {outcome.trouble}"
    if outcome.timed_out:
        return f"killed after {SECONDS:g} s"
    if outcome.over_output:
        return "killed, printed too much"
    said = outcome.stderr.decode(errors="replace").strip().splitlines()
    last = said[-1][:60].replace("|", "\\|") if said else ""
    return f"exit {outcome.exit_code}{', ' if last else ''}{last}"


def attack(kind: str, source: str) -> dict[str, object]:
    """One program, run once alone and judged once by calls and once by what it prints."""
    limits = Limits(kind, SECONDS)
    outcome = run_program(Program(source), b"1\n", limits)
    time.sleep(1)
    left = processes_left()
    calls = json.dumps({"entry_point": "f", "tests": [f"assert f(1) == {EXPECTED!r}"]})
    prints = json.dumps({"inputs": ["1"], "outputs": [EXPECTED]})
    rewards = [unit_tests(f"```python\n{source}\n```", answer, {}, limits).reward for answer in (calls, prints)]
    secrets = b"BREACH" in outcome.stdout or b"a-secret" in outcome.stdout + outcome.stderr
    return {
        "ending": ending(outcome), "seconds": round(outcome.seconds, 2), "rewards": rewards, "left": left,
        "reached": secrets,
    }  # fmt: skip


def milliseconds(kind: str) -> dict[str, float]:
    """Medians: a run of a program that prints, and a verdict with ten tests of each form."""
    limits = Limits(kind, 10.0)
    reads = ("```python\nprint(int(input()) + 1)\n```", json.dumps({"inputs": ["1"] * 10, "outputs": ["2"] * 10}))
    calls = (
        "```python\ndef f(x):\n    return x + 1\n```",
        json.dumps([f"assert f({n}) == {n + 1}" for n in range(10)]),
    )
    timed = {
        "one run": lambda: run_program(Program("print(1)"), b"", limits),
        "ten tests that print": lambda: unit_tests(*reads, {}, limits),
        "ten tests that call": lambda: unit_tests(*calls, {}, limits),
    }
    medians = {}
    for name, function in timed.items():
        seconds = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - began)
        medians[name] = round(1000 * statistics.median(seconds), 1)
    return medians


def main(out: Path) -> None:
    """Run all and write it down."""
    os.environ["TRAINER_TOKEN"] = "a-secret-of-the-trainer"
    working = [kind for kind in (kinds.BUBBLEWRAP, kinds.RLIMIT) if trouble_with(kind) is None]
    result: dict[str, dict] = {kind: {"missing": missing(kind), "milliseconds": milliseconds(kind)} for kind in working}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        os.chmod(folder, 0o777)
        (Path(folder) / "secret").write_text("a-secret-of-the-trainer")
        for kind in working:
            sources = {name: planted(text, folder, listener.getsockname()[1]) for name, text in HOSTILE.items()}
            result[kind]["attacks"] = {name: attack(kind, source) for name, source in sources.items()}
    out.write_text(json.dumps(result, indent=1))
    sys.stdout.write("\n".join(table(result)) + "\n")


def table(result: dict[str, dict]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| program | " + " | ".join(result) + " | rewards | left | reached |",
        "|---|" + "---|" * (len(result) + 3),
    ]
    for name in HOSTILE:
        rows = [result[kind]["attacks"][name] for kind in result]
        rewards = sorted({str(reward) for row in rows for reward in row["rewards"]})
        endings = " | ".join(f"{row['ending']} ({row['seconds']:.1f} s)" for row in rows)
        left, reached = sum(row["left"] for row in rows), any(row["reached"] for row in rows)
        lines.append(f"| {name} | {endings} | {', '.join(rewards)} | {left} | {'YES' if reached else 'nothing'} |")
    for kind, of_kind in result.items():
        lines += ["", f"{kind} lacks: {'; '.join(of_kind['missing']) or 'nothing'}.", f"ms: {of_kind['milliseconds']}"]
    return lines


if __name__ == "__main__":
    main(Path(sys.argv[1]))
