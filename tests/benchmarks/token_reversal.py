"""TPO's token reversal with a terminal reward (arXiv 2604.06159, Table 3, prompt-matched), by lpo-ray's objective.

PYTHONPATH=. .venv/bin/python tests/benchmarks/token_reversal.py configs/results/token_reversal.json
    [--lengths 7,8,9,10] [--seeds 10] [--arms tpo,lpo_sum] [--batches 2000]

OUT.json is added to after every run, and runs that are in it are not done again: stop it at any time, start it again,
or start a second one for other lengths. Lengths come first, then seeds, then arms, so that what there is compares equal
seeds. A curve has the mean error of each EVERY batches. tests/benchmarks/token_reversal_report.py draws it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock

from tests.benchmarks.reversal.arms import ARMS, HORIZONS
from tests.benchmarks.reversal.train import Setting, errors

EVERY = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lengths", default=",".join(map(str, HORIZONS)))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--batches", type=int, default=Setting().batches)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(batches=arguments.batches)
    lengths, arms = [int(length) for length in arguments.lengths.split(",")], arguments.arms.split(",")
    for length, seed, arm in itertools.product(lengths, range(arguments.seeds), arms):
        if str(seed) in read(arguments.out, setting).get(arm, {}).get(str(length), {}):
            continue
        started = time.process_time()
        curve = list(errors(ARMS[arm], length, seed, setting))
        result = {
            "curve": [
                round(statistics.fmean(part), 4)
                for part in (curve[at : at + EVERY] for at in range(0, len(curve), EVERY))
            ],
            "last": round(curve[-1], 4),
            "cpu_seconds": round(time.process_time() - started),
        }
        add(arguments.out, setting, arm, length, seed, result)
        sys.stdout.write(f"{time.strftime('%H:%M:%S')} {arm} H={length} seed={seed} {result['curve'][-1]:.3f}\n")
        sys.stdout.flush()


def read(out: Path, setting: Setting) -> dict[str, dict[str, dict[str, dict]]]:
    """arm -> length -> seed -> result of the runs in ``out``, all of one setting."""
    if not out.exists():
        return {}
    found = json.loads(out.read_text())
    if found["setting"] != asdict(setting):
        raise SystemExit(f"{out} has runs of {found['setting']}, not of {asdict(setting)}: name another file")
    return found["runs"]


def add(out: Path, setting: Setting, arm: str, length: int, seed: int, result: dict) -> None:
    """Put one run into ``out``, beside what other processes put there."""
    with FileLock(out.with_suffix(".lock")):
        runs = read(out, setting)
        runs.setdefault(arm, {}).setdefault(str(length), {})[str(seed)] = result
        new = out.with_suffix(".new")
        new.write_text(json.dumps({"setting": asdict(setting), "every": EVERY, "runs": runs}) + "\n")
        os.replace(new, out)


if __name__ == "__main__":
    main()
