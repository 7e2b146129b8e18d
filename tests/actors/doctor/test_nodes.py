"""What `lpo-ray doctor` says of clocks, tokens and addresses; on a live cluster: tests/e2e/test_doctor.py."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from actors.doctor.nodes import Skew, authentication, examine_cluster, skew
from lpo_ray.errors import ConfigError
from lpo_ray.tools.doctor import CHECKS, State, Surroundings

HERE = Surroundings(Path("/tmp"), Path("/tmp"), Path("/tmp"))


@pytest.mark.slow
def test_auto_without_a_cluster_is_one_line() -> None:
    if any(process.name() == "gcs_server" for process in psutil.process_iter(["name"])):
        pytest.skip("a Ray cluster runs on this machine, and auto finds it")
    command = [sys.executable, "-m", "lpo_ray", "doctor", "--quick", "--address", "auto"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert finished.returncode == 2
    # A cluster that was killed leaves its address behind, and auto tries it.
    said = r"ConfigError: --address is ('auto', whose Ray cluster cannot be joined|auto \(.*\), where nobody answers): "
    assert re.match(said, finished.stderr), finished.stderr
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "where nobody answers"),
        ("no-such-host.invalid:6379", "where nobody answers"),
        ("127.0.0.1", "expected HOST:PORT"),
        ("127.0.0.1:99999999", "where nobody answers"),
    ],
)
def test_a_wrong_address_is_one_line_at_once(address: str, said: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError) as refused:
        examine_cluster(address, HERE, quick=True)
    assert time.monotonic() - started < 30
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("ahead", "uncertainty", "state"),
    [(0.3, 0.001, "OK"), (-5.0, 0.01, "WARN"), (5.0, 6.0, "OK"), (3600.0, 0.1, "FAIL"), (-61.5, 0.5, "FAIL")],
)
def test_clocks(ahead: float, uncertainty: float, state: str) -> None:
    finding = skew("clock", Skew(ahead, uncertainty))
    assert finding.state.value == state
    assert f"{ahead:+.3f} s" in finding.found


def test_a_cluster_without_authentication_is_pointed_at() -> None:
    assert [authentication(mode).state for mode in ("", "token", "disabled")] == [State.ok, State.ok, State.warn]


def test_every_check_can_be_sent_to_a_node() -> None:
    assert pickle.loads(pickle.dumps(CHECKS)) == CHECKS
