from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from lpo_ray.errors import RunFailed
from lpo_ray.tools.compare.launcher import LaunchedRun, Named, carry_out


@dataclass(frozen=True)
class FakeRun:
    name: str


@dataclass
class FakeLaunch:
    """Runs take one turn of the loop each, unless they ``hang``."""

    crash: frozenset[str] = frozenset()
    hang: frozenset[str] = frozenset()
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    running: int = 0
    most: int = 0

    async def __call__(self, run: Named) -> None:
        self.started.append(run.name)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(3600 if run.name in self.hang else 0.001)
            if run.name in self.crash:
                raise RunFailed(run.name, 1, "a.log", ["the last words"])
        except asyncio.CancelledError:
            self.stopped.append(run.name)
            raise
        finally:
            self.running -= 1


RUNS = [FakeRun(str(number)) for number in range(7)]


@pytest.mark.parametrize("parallel", [1, 3, 100])
async def test_all_runs_are_launched_in_order_and_no_more_at_once_than_allowed(parallel: int) -> None:
    launch, ended = FakeLaunch(), []
    assert await carry_out(RUNS, launch, parallel, lambda run, failure: ended.append(run.name)) == []
    assert launch.started == [run.name for run in RUNS]
    assert sorted(ended) == launch.started
    assert launch.most == min(parallel, len(RUNS))


async def test_what_fails_is_told_with_its_last_words_and_the_others_go_on() -> None:
    launch, ended = FakeLaunch(crash=frozenset({"0", "3"})), {}
    failed = await carry_out(RUNS, launch, 2, lambda run, failure: ended.update({run.name: failure}))
    assert [error.run for error in failed] == ["0", "3"]
    assert len(launch.started) == len(RUNS)
    assert "the last words" in str(ended["3"])
    assert [name for name, failure in ended.items() if failure] == ["0", "3"]


async def test_stopping_stops_the_runs_that_go_on_and_starts_no_other() -> None:
    launch = FakeLaunch(hang=frozenset({"1", "2"}))
    task = asyncio.create_task(carry_out(RUNS, launch, 2, lambda run, failure: None))
    while launch.running < 2 or "0" in launch.started[-1:]:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(launch.stopped) == ["1", "2"]
    assert launch.started == ["0", "1", "2"]


async def test_a_process_that_fails_has_its_last_lines_in_the_error(tmp_path: Path) -> None:
    process = LaunchedRun(("data", str(tmp_path / "none.yaml")), tmp_path / "a.log", threads=1)
    with pytest.raises(
        RunFailed, match=r"run one ended with exit code 2.*\n.*ConfigError: config file .* does not exist"
    ):
        await process.run("one")


async def test_a_process_that_is_stopped_has_ended_when_its_call_has(tmp_path: Path) -> None:
    process = LaunchedRun(("data", str(tmp_path / "none.yaml")), tmp_path / "a.log", threads=1)
    task = asyncio.create_task(process.run("one"))
    while not (found := children_with(str(tmp_path))):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(child.is_running() for child in found)


def children_with(argument: str) -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if any(argument in part for part in child.cmdline())]
