"""``lpo-ray compare``: the runs, each a process, and then what came out of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lpo_ray.cli.console import ROW_WIDTH
from lpo_ray.common.files import make_folder, write_text
from lpo_ray.common.folder_lock import FolderLock, Held
from lpo_ray.config import dump_config, load_config
from lpo_ray.config.schema import Config
from lpo_ray.errors import RunBusy, RunFailed, RunsFailed
from lpo_ray.run.day import begun_on, dated
from lpo_ray.run.folder import look
from lpo_ray.run.signals import run_until_signal
from lpo_ray.run.spec import make_spec
from lpo_ray.tools.compare.findings import Results
from lpo_ray.tools.compare.grid import arms_of, axes_of
from lpo_ray.tools.compare.launcher import LaunchedRun, Named, carry_out
from lpo_ray.tools.compare.outcome import read_outcome
from lpo_ray.tools.compare.report import Background, write_comparison
from lpo_ray.tools.compare.study import Run, in_common, runs_of
from lpo_ray.tools.plan.machines import Machine, place, this_machine
from lpo_ray.tools.plan.requirements import bundles


def compare_command(path: Path, texts: Sequence[str], seeds: int, out: Path | None, parallel: int | None) -> None:
    """Carry out what of the comparison has not been, and write what came out. RunsFailed when runs failed."""
    axes, overrides = axes_of(texts)
    config = load_config(path, overrides)
    arms = arms_of(axes, config.objective.divergence)
    folder = out or Path(config.run.dir) / f"{config.run.name}-comparison"
    config = dated(config, begun_on(folder))  # arms may run on different days
    runs = runs_of(path, overrides, arms, seeds, folder)
    spec = make_spec(runs[0].config)  # that data, verifier and memory are as needed, before anything starts
    look(spec)
    count = parallel or _that_fit(spec.config, len(runs))
    make_folder(folder)
    try:
        with FolderLock(folder / ".lock"):
            write_text(folder / "config.yaml", dump_config(config))
            failed = _carry_out(runs, folder, count)
            _write(runs, failed, folder, config.evaluation.ks)
    except Held as held:
        raise RunBusy(
            f"{folder} is being worked on by another lpo-ray compare: {held}. Expected one at a time: wait for it, or "
            "take another --out"
        ) from held
    if failed:
        raise RunsFailed([error.run for error in failed], len(runs))


def _carry_out(runs: Sequence[Run], folder: Path, parallel: int) -> list[RunFailed]:
    """Run what has not finished, and say how far that is."""
    left = [run for run in runs if not run.is_finished]
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{len(runs)} runs, {len(runs) - len(left)} of them finished before, {parallel} at once: {folder}")
    for aspect, how in in_common(runs).items():
        console.print(f"  {aspect}: {how}")
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    started, ended = time.monotonic(), len(runs) - len(left)

    async def launch(run: Named) -> None:
        assert isinstance(run, Run)
        arguments = ("train", str(folder / "config.yaml"), *run.overrides)
        await LaunchedRun(arguments, logs / f"{run.name}.log", run.config.learner.threads or 1).run(run.name)

    def on_end(run: Named, failure: RunFailed | None) -> None:
        nonlocal ended
        ended += 1
        how = "done" if failure is None else str(failure)
        console.print(f"[{ended}/{len(runs)}] {run.name}: {how}  ({time.monotonic() - started:.0f} s)", markup=False)

    async def all_of_them() -> list[RunFailed]:
        if left and left[0].config.model.path is None:  # once, not by every run at the same time
            warmup = LaunchedRun(
                ("warmup", str(folder / "config.yaml")), logs / "warmup.log", left[0].config.learner.threads or 1
            )
            await warmup.run("warmup")
        return await carry_out(left, launch, parallel, on_end)

    return run_until_signal(lambda _: all_of_them())


def _write(runs: Sequence[Run], failed: Sequence[RunFailed], folder: Path, ks: Sequence[int]) -> None:
    results: Results = {
        arm: {run.seed: read_outcome(run.folder) for run in runs if run.arm == arm and run.is_finished}
        for arm in dict.fromkeys(run.arm for run in runs)
    }
    if not any(results.values()):
        return
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    tables = write_comparison(folder, results, ks, Background(folder.name, in_common(runs), failed, config))
    console = Console(width=None if sys.stdout.isatty() else ROW_WIDTH, highlight=False)
    for table in tables:
        console.print(table.rich())
    console.print(f"{folder}: comparison.html, .md and .json; curves and trades, .svg and .png", soft_wrap=True)


def _that_fit(config: Config, wanted: int) -> int:
    """As many runs as find a place at once, one at least."""
    needed, machines = bundles(config), _machines(config.cluster.address)
    fitting = 1
    while fitting < wanted and isinstance(place(needed * (fitting + 1), machines, spread=frozenset()), list):
        fitting += 1
    return fitting


def _machines(address: str | None) -> list[Machine]:
    if address is None:
        return [this_machine(1)]
    from actors.runtime.machines import nodes_at

    return nodes_at(address)
