"""The run folder: created once, resumed as it was begun, and what a dry run says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpo_ray.config import dump_config, load_config
from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError
from lpo_ray.run.folder import look, outlook
from lpo_ray.run.spec import RunSpec, make_spec
from lpo_ray.training.ledger import Ledger

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def config_of(*overrides: str) -> Config:
    return load_config(QUICKSTART, overrides)


def spec_of(folder: Path, *overrides: str) -> RunSpec:
    return make_spec(config_of(f"run.dir={folder.parent}", f"run.name={folder.name}", *overrides))


def begun(folder: Path, *, committed: int, saved: int) -> None:
    """What a run that was killed leaves, as far as a dry run looks."""
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config_of()))
    ledger = Ledger(folder / "ledger.sqlite")
    for step in range(1, committed + 1):
        ledger._db.execute("INSERT INTO commits (step, digest, committed_at) VALUES (?, 'd', 1.0)", (step,))
    ledger.close()
    if saved:
        checkpoint = folder / "checkpoints" / f"step_{saved:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text("{}")


def test_an_existing_run_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"continue it with run.resume=auto"):
        look(spec_of(tmp_path))
    look(spec_of(tmp_path, "run.resume=auto"))


def test_a_run_is_resumed_with_what_it_was_begun_with(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun(folder, committed=0, saved=0)
    look(spec_of(folder, "run.resume=auto", "run.steps=99", "learner.lr=1e-5", "learner.world_size=1"))
    with pytest.raises(ConfigError, match=r"was begun with run.seed=0, now it is 1"):
        look(spec_of(folder, "run.resume=auto", "run.seed=1"))


def test_a_run_that_learns_otherwise_is_known(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert look(spec_of(folder, "learner.lr=1")).recompute
    begun(folder, committed=0, saved=0)
    assert look(spec_of(folder, "run.resume=auto", "telemetry.samples_every=3")).recompute
    assert not look(spec_of(folder, "run.resume=auto", "learner.lr=1e-5")).recompute


def test_a_dry_run_says_what_would_become_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert outlook(spec_of(folder)) == "begin a new run"
    begun(folder, committed=8, saved=5)
    assert outlook(spec_of(folder)).startswith(f"refuse: run folder {folder} exists and is not empty; take another")
    assert (
        outlook(spec_of(folder, "run.resume=auto"))
        == "resume after step 8 of 64, computing steps 6 to 8 again from the groups that made them"
    )
    # another learning rate would make other steps: those since the checkpoint are trained anew
    assert outlook(spec_of(folder, "run.resume=auto", "learner.lr=1e-5")) == "resume after step 5 of 64"
    assert outlook(spec_of(folder, "run.resume=auto", "run.seed=1")).startswith("refuse: ")
