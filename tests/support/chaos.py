"""SIGKILL of random processes of a run at random moments; the command is run again whenever it ends."""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.processes import marked

VICTIMS = ("driver", "rollout worker", "verifier process", "learner rank")


@dataclass
class Chaos:
    """Runs ``lpo-ray train CONFIG OVERRIDES`` until it ends by itself after ``kills`` kills."""

    config: Path
    overrides: list[str]
    kills: int
    seed: int
    pauses: tuple[float, float] = (1.0, 15.0)
    """seconds between two kills, uniformly distributed; after a start they count from its first step, but for one start
    in five, which may be killed before it is up
    """
    killed: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    output: list[str] = field(default_factory=list)
    """of each start"""

    def run(self, limit: float) -> int:
        """Exit code of the last start. AssertionError when it takes longer than ``limit`` seconds."""
        rng, deadline = random.Random(self.seed), time.monotonic() + limit
        self.mark = f"LPO_RAY_TEST_RUN={os.urandom(8).hex()}"
        process, moment = self._start(), math.inf
        early = False
        try:
            while True:
                assert time.monotonic() < deadline, f"not done after {limit:.0f} s:\n{self.output[-1][-3000:]}"
                time.sleep(0.05)
                if process.poll() is not None:
                    self._collect(process)
                    if process.returncode == 0 and self.killed.total() >= self.kills:
                        return 0
                    if process.returncode not in (0, 1, -9):
                        return process.returncode
                    process, moment = self._start(), math.inf
                    early = rng.random() < 0.2
                elif moment == math.inf:
                    if early or re.search(r" step \d+/", Path(self._log.name).read_text(errors="replace")):
                        moment = time.monotonic() + rng.uniform(*self.pauses)
                elif self.killed.total() < self.kills and time.monotonic() >= moment:
                    victim = rng.choice(VICTIMS)
                    if self._kill(victim, process, rng):
                        self.killed[victim] += 1
                    moment = time.monotonic() + rng.uniform(*self.pauses)
        finally:
            for left in marked(self.mark):
                left.kill()

    def _start(self) -> subprocess.Popen[str]:
        self.starts += 1
        self._log = open(f"{self._folder()}/start-{self.starts:02d}.log", "w+")  # noqa: SIM115 - closed in _collect
        name, _, value = self.mark.partition("=")
        command = [sys.executable, "-m", "lpo_ray", "train", str(self.config), "run.resume=auto", *self.overrides]
        environment = {**os.environ, name: value}
        return subprocess.Popen(command, env=environment, stdout=self._log, stderr=subprocess.STDOUT, text=True)

    def _folder(self) -> str:
        """Where the outputs of the starts go: run.dir of the overrides."""
        return next(o.removeprefix("run.dir=") for o in self.overrides if o.startswith("run.dir="))

    def _collect(self, process: subprocess.Popen[str]) -> None:
        process.wait()
        self._log.seek(0)
        self.output.append(self._log.read())
        self._log.close()

    def _kill(self, victim: str, driver: subprocess.Popen[str], rng: random.Random) -> bool:
        found = [driver] if victim == "driver" else self._find(victim)
        if not found:
            return False  # it is not up at this moment
        rng.choice(found).kill()
        return True

    def _find(self, victim: str) -> list[psutil.Process]:
        if victim == "rollout worker":
            return self._actors("RolloutWorker")
        if victim == "learner rank":
            return self._actors("LearnerWorker")
        below = [p for service in self._actors("VerifierService") for p in _below(service)]
        return [process for process in below if not _below(process)]

    def _actors(self, name: str) -> list[psutil.Process]:
        return [process for process in marked(self.mark) if f"ray::{name}" in _command(process)]


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
