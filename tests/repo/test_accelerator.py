"""``make ... ACCEL=cuda``: which configuration it trains, and which tests it leaves out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from tests import conftest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("accelerator", "config"), [("cpu", "quickstart"), ("cuda", "quickstart_gpu")])
def test_make_train_takes_the_configuration_of_the_accelerator(accelerator: str, config: str) -> None:
    command = ["make", "--dry-run", "--no-print-directory", "train", f"ACCEL={accelerator}"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"--accelerator {accelerator}\n" in said
    assert f"lpo_ray train configs/{config}.yaml" in said
    assert (ROOT / "configs" / f"{config}.yaml").is_file()


class Item:
    """A test with marks."""

    def __init__(self, *marks: str) -> None:
        self.marks, self.skipped = marks, False

    def get_closest_marker(self, name: str) -> bool:
        return name in self.marks

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        assert mark.name == "skip"
        self.skipped = True


@pytest.mark.parametrize(("cuda", "left_out"), [(None, [False] * 4), ("13.0", [False, True, True, False])])
def test_a_build_for_gpus_leaves_out_tests_whose_engines_run_on_cpus(
    cuda: str | None, left_out: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    items = [Item(), Item("e2e"), Item("e2e", "long"), Item("e2e", "gpu")]
    conftest.pytest_collection_modifyitems(items)
    assert [item.skipped for item in items] == left_out
