"""What a rank of many sends for a micro-batch, counted in one process over a fake process group."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest


def measured(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.support.fake_group", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("world_size", "size"), [("16", ""), pytest.param("64", "", marks=pytest.mark.slow), ("64", "large")]
)
def test_a_micro_batch_gathers_and_reduces_the_model_in_few_pieces(world_size: str, size: str) -> None:
    """Once gathered where all of it may stay whole until the backward pass, else twice; once reduced, in fp32."""
    found = measured(world_size, size)
    assert found["gradient_dtype"] == found["communication_dtype"] == "torch.float32"
    _, recorded, seven, none = found["micro_batches"]
    gathered = 2 * found["parameters"]  # bytes, in bfloat16
    for micro_batch in (recorded, seven, none):  # one group, seven, none: the same, or ranks would wait for ever
        for what in ("calls", "bytes"):
            for kind in ("all_gather_into_tensor", "reduce_scatter_tensor"):
                assert micro_batch[what][kind] == seven[what][kind]
        assert set(micro_batch["calls"]) <= {"all_gather_into_tensor", "reduce_scatter_tensor", "broadcast"}
    times = seven["bytes"]["all_gather_into_tensor"] / gathered
    assert 1.6 < times < 2.02 if size else times == pytest.approx(1.0, rel=0.01)
    assert seven["calls"]["all_gather_into_tensor"] <= (40 if size else 1)  # of 47 tensors
    assert seven["bytes"]["reduce_scatter_tensor"] / (2 * gathered) == pytest.approx(1.0, rel=0.01)
    assert seven["calls"]["reduce_scatter_tensor"] == 1
    assert set(seven["calls"]) == {"all_gather_into_tensor", "reduce_scatter_tensor"}
