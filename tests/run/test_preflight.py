"""The run folder: created once, resumed as it was begun, and what a dry run says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpo_ray.config import dump_config, load_config
from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError
from lpo_ray.run.preflight import check_run_folder, learns_as_begun, outlook
from lpo_ray.training.ledger import Ledger

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def config_of(*overrides: str) -> Config:
    return load_config(QUICKSTART, overrides)


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
        check_run_folder(tmp_path, config_of())
    check_run_folder(tmp_path, config_of("run.resume=auto"))


def test_a_run_is_resumed_with_what_it_was_begun_with(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun(folder, committed=0, saved=0)
    check_run_folder(folder, config_of("run.resume=auto", "run.steps=99", "learner.lr=1e-5", "learner.world_size=1"))
    with pytest.raises(ConfigError, match=r"was begun with run.seed=0, now it is 1"):
        check_run_folder(folder, config_of("run.resume=auto", "run.seed=1"))


def test_a_run_that_learns_otherwise_is_known(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert learns_as_begun(folder, config_of("learner.lr=1"))
    begun(folder, committed=0, saved=0)
    assert learns_as_begun(folder, config_of("run.resume=auto", "telemetry.samples_every=3"))
    assert not learns_as_begun(folder, config_of("run.resume=auto", "learner.lr=1e-5"))


def test_keys_of_an_earlier_version_are_not_a_change(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun(folder, committed=0, saved=0)
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("silence_seconds", "deadline_seconds"))
    assert learns_as_begun(folder, config_of("run.resume=auto"))
    check_run_folder(folder, config_of("run.resume=auto"))


def test_a_dry_run_says_what_would_become_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert outlook(folder, config_of()) == "begin a new run"
    begun(folder, committed=8, saved=5)
    assert outlook(folder, config_of()).startswith(f"refuse: run folder {folder} exists and is not empty; take another")
    assert (
        outlook(folder, config_of("run.resume=auto"))
        == "resume after step 8 of 64, computing steps 6 to 8 again from the groups that made them"
    )
    # another learning rate would make other steps: those since the checkpoint are trained anew
    assert outlook(folder, config_of("run.resume=auto", "learner.lr=1e-5")) == "resume after step 5 of 64"
    assert outlook(folder, config_of("run.resume=auto", "run.seed=1")).startswith("refuse: ")
