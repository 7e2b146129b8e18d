"""Training runs in a process of their own, for tests that signal, kill and resume them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.support.processes import marked

QUICKSTART = str(Path(__file__).parent.parent.parent / "configs" / "quickstart.yaml")


class Run:
    """A training run in a process of its own, known by an environment variable that its descendants inherit."""

    def __init__(self, folder: Path, policy: Path, *overrides: str) -> None:
        self.folder = folder / "quickstart"
        self.mark = f"LPO_RAY_TEST_RUN={os.urandom(8).hex()}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "lpo_ray", "train", QUICKSTART, f"run.dir={folder}", f"model.path={policy}",
                "run.steps=500", "pipeline.groups_per_step=8", "sampling.group_size=4", "evaluation.num_prompts=0",
                "checkpoint.every=3", "learner.world_size=1", *overrides,
            ],
            env={**os.environ, name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 300
        while len(self.steps()) < step:
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < deadline, f"no step {step}"
            time.sleep(0.2)

    def steps(self) -> list[int]:
        return steps_of(self.folder)

    def descendants(self) -> list[psutil.Process]:
        """Every process that carries the mark."""
        return marked(self.mark)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.descendants():
            process.kill()

    def assert_nothing_is_left(self) -> None:
        _, alive = psutil.wait_procs(self.descendants(), timeout=30)
        assert [" ".join(process.cmdline()) for process in alive] == []


def steps_of(folder: Path) -> list[int]:
    """Steps that a run has written down."""
    path = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def find(run: Run, actor: str) -> list[psutil.Process]:
    return [process for process in run.descendants() if f"ray::{actor}" in " ".join(process.cmdline())]


DIGITS = "task.verifier=tests.support.e2e_verifiers:digits"


def finish(run: Run) -> str:
    """Wait for the end of a run, whatever it is; its output."""
    try:
        return run.process.communicate(timeout=200)[0]
    finally:
        for process in run.descendants():
            process.kill()
