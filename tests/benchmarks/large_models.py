"""What can be said of large learners without a GPU, in about two minutes: one table, one JSON file.

PYTHONPATH=. .venv/bin/python tests/benchmarks/large_models.py OUT.json

- Collectives and bytes of a micro-batch as rank 0 of 16 and of 64, over torch's fake process group (a small model in
  bfloat16; ``tests/support/fake_group.py``). "May be whole": all of it until the backward pass, or a quarter of it.
- Bytes that the forward pass of 16,384 tokens keeps for the backward pass, on the meta device, beside what ``plan``
  counts (``tests/support/meta_model.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

GROUPS = ((16, ""), (64, ""), (64, "large"))
MODELS = (("8B", ""), ("8B", "--keep"), ("32B", ""), ("30B-A3B", ""))
NOT_KNOWN = "a mixture, which plan refuses"


def of_module(name: str, *arguments: str) -> dict[str, Any]:
    """Return what a module of tests/support prints."""
    command = [sys.executable, "-m", f"tests.support.{name}", *filter(None, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def collectives() -> list[dict[str, Any]]:
    rows = []
    for ranks, size in GROUPS:
        found = of_module("fake_group", str(ranks), size)
        last, model = found["micro_batches"][2], 2 * found["parameters"]
        times = {kind: last["bytes"][kind] / model for kind in ("all_gather_into_tensor", "reduce_scatter_tensor")}
        rows.append(
            {"ranks": ranks, "may be whole": "a quarter" if size else "all", "calls": last["calls"],
             "times the model's bytes": times, "gradients": found["communication_dtype"]}
        )  # fmt: skip
    return rows


def kept() -> list[dict[str, Any]]:
    rows = []
    for name, option in MODELS:
        found = of_module("meta_model", name, option)
        rows.append(
            {"model": name, "checkpointing": not option, "parameters": found["parameters"], "kept": found["kept"],
             "planned": found.get("planned", NOT_KNOWN)}
        )  # fmt: skip
    return rows


def render(found: dict[str, Any]) -> list[Table]:
    sent = Table("ranks", "may be whole", "gathers", "times the model", "reductions", "times the model", "in")
    for row in found["collectives"]:
        pairs = [
            (str(row["calls"][kind]), f"{times:.2f}") for kind, times in row["times the model's bytes"].items()
        ]  # fmt: skip
        sent.add_row(str(row["ranks"]), row["may be whole"], *pairs[0], *pairs[1], row["gradients"])
    memory = Table("model", "checkpointing", "GiB kept", "GiB planned")
    for row in found["kept"]:
        planned = row["planned"] if isinstance(row["planned"], str) else f"{row['planned'] / 2**30:.2f}"
        memory.add_row(row["model"], str(row["checkpointing"]), f"{row['kept'] / 2**30:.2f}", planned)
    return [sent, memory]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    found = {"date": date, "collectives": collectives(), "kept": kept()}
    Console(width=120).print(*render(found))
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
