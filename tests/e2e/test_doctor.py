"""`lpo-ray doctor` on this machine, and on a live cluster of two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.doctor.nodes import BETWEEN, examine_cluster
from lpo_ray.tools.doctor import Check, Finding, State, Surroundings

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
HERE = Surroundings(Path("/tmp"), Path("/tmp"), Path("/tmp"))


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lpo_ray", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def states(findings: list[dict[str, str]]) -> dict[str, str]:
    return {finding["name"]: finding["state"] for finding in findings}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two Ray nodes on this machine; without authentication, as the cluster's processes share no token file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        yield nodes.address
        nodes.shutdown()


@pytest.mark.long
def test_auto_with_the_address_of_a_cluster_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    started = time.monotonic()
    finished = doctor("--quick", "--address", "auto")
    assert time.monotonic() - started < 60
    assert finished.returncode == 2
    assert finished.stderr.startswith("ConfigError: --address is auto (")
    assert "where nobody answers: " in finished.stderr
    assert finished.stderr.count("\n") == 1


@pytest.mark.long
def test_this_machine_passes_with_a_real_engine_and_a_real_collective() -> None:
    finished = doctor("--json")
    result = json.loads(finished.stdout)
    assert finished.returncode == 0, (finished.stderr, result)
    assert result["passed"]
    [findings] = result["groups"].values()
    found = {finding["name"]: finding for finding in findings}
    assert [found[name]["state"] for name in ("engine", "gloo collective", "vllm's extension")] == ["OK"] * 3
    assert found["engine"]["found"].startswith("10 tokens in ")


@pytest.mark.long
def test_a_live_cluster_has_a_group_for_each_node_and_one_between_them(cluster: str) -> None:
    finished = doctor("--json", "--address", cluster)
    assert finished.returncode == 0, finished.stderr + finished.stdout
    groups = json.loads(finished.stdout)["groups"]
    assert len(groups) == 3
    between = states(groups.pop(BETWEEN))
    for node, findings in groups.items():
        assert states(findings)["engine"] == "OK"
        assert between[f"clock of {node}"] == "OK"
    assert between["versions"] == "OK"
    assert [state for name, state in between.items() if name.startswith("gloo, ")] == ["OK"]


def test_quick_on_a_cluster_as_a_table(cluster: str) -> None:
    finished = doctor("--quick", "--address", cluster)
    assert finished.returncode == 0, finished.stderr + finished.stdout
    assert "between nodes" in finished.stdout
    assert "engine" not in finished.stdout
    assert finished.stdout.count("/dev/shm") == 2


def _hangs(_: Surroundings) -> list[Finding]:
    time.sleep(600)
    return []


def _ends_its_node(_: Surroundings) -> list[Finding]:
    os._exit(9)


@pytest.mark.long
@pytest.mark.parametrize(("check", "said"), [(_hangs, "no answer within 1 s"), (_ends_its_node, "died")])
def test_a_node_whose_check_hangs_or_dies_is_a_finding(cluster: str, check: object, said: str) -> None:
    checks = [Check("bad", check, 1.0)]  # pyright: ignore[reportArgumentType]
    groups = examine_cluster(cluster, HERE, quick=True, checks=checks)
    assert not ray.is_initialized()
    assert len(groups) == 3
    assert all(said in finding.found for name, findings in groups.items() if name != BETWEEN for finding in findings)
    found = {finding.name: finding.state for finding in groups[BETWEEN]}
    assert found.pop("authentication") is State.warn
    assert set(found.values()) == {State.ok}
