"""What the forward of a large model keeps for its backward, by plan and by autograd itself, on the meta device."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

TOKENS, SCORED = 4 * 4096, 4 * 3584


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("name", "parameters", "options"),
    [
        ("8B", 8_190_735_360, ()),
        pytest.param("8B", 8_190_735_360, ("--keep",), marks=pytest.mark.slow),
        pytest.param("32B", 32_762_123_264, (), marks=pytest.mark.slow),
        pytest.param("30B-A3B", 30_532_122_624, (), marks=pytest.mark.slow),
    ],
)
def test_plan_counts_what_autograd_keeps(name: str, parameters: int, options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "tests.support.meta_model", name, *options]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    found = json.loads(finished.stdout.splitlines()[-1])
    assert found["parameters"] == parameters
    assert found["without_gradient"] == []
    assert found["logprobs"] == [SCORED, "torch.float32"]
    inputs, last_norm, selected = found["layers"] * TOKENS, 4 * TOKENS, SCORED  # rows of the model's width, in bfloat16
    expected = found["planned"] if "planned" in found else (inputs + last_norm + selected) * found["hidden"]
    assert found["kept"] == pytest.approx(expected, rel=0.03)
