"""The real stack, once for the module: Ray, one vLLM engine, two ZeRO-3 ranks, verifier processes; two steps."""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from actors.learner.worker import LearnerWorker
from lpo_ray.interfaces import Events
from lpo_ray.objective import project
from lpo_ray.policy.weights_proof import as_bundles, largest_difference, probe_sequences
from lpo_ray.records import PromptGroup, Response
from lpo_ray.run.folder import held
from lpo_ray.run.signals import run_until_signal
from lpo_ray.run.spec import RunSpec
from lpo_ray.run.train import train
from tests.support.builders import recorder_of
from tests.support.real_specs import GROUPS, SIZE, STEPS, plan_of

PROBE = probe_sequences([np.random.default_rng(0).integers(0, 90, size=63)], 64)
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]


@dataclass
class Finished:
    """What was seen before the components were closed."""

    folder: Path
    pids: dict[str, int] = field(default_factory=dict)
    niceness: dict[str, set[int]] = field(default_factory=dict)
    """of the threads of each process"""
    served: list[np.ndarray] = field(default_factory=list)
    expected: list[np.ndarray] = field(default_factory=list)
    shards: list[dict[str, float]] = field(default_factory=list)
    groups: list[list[PromptGroup]] = field(default_factory=list)
    verdicts: dict[str, object] = field(default_factory=dict)


class Watched:
    """The cluster, looked at after the last step and before it is closed."""

    def __init__(self, cluster: object, finished: Finished) -> None:
        self._cluster, self._finished = cluster, finished

    def __getattr__(self, name: str) -> object:
        return getattr(self._cluster, name)

    async def close(self) -> None:
        cluster, seen = self._cluster, self._finished
        try:
            probe = PROBE
            seen.pids = {name: process.pid for name, process in cluster.processes.items()}
            seen.niceness = {name: _niceness(pid) for name, pid in seen.pids.items()}
            seen.expected = await cluster.learner.probe(as_bundles(probe))
            seen.served = await cluster.rollout.members[0].worker.handle.logprobs.remote(probe)
            seen.shards = [await rank.__ray_call__.remote(_shard_norms) for rank in cluster.learner.ranks]
            seen.verdicts = await _verdicts(cluster)
        finally:
            await cluster.close()


def _niceness(pid: int) -> set[int]:
    return {os.getpriority(os.PRIO_PROCESS, thread.id) for thread in psutil.Process(pid).threads()}


def _shard_norms(worker: LearnerWorker) -> dict[str, float]:
    """Norm of a rank's shard of each parameter."""
    parameters = worker._policy.model.named_parameters()
    return {name: float(parameter.ds_tensor.detach().double().norm()) for name, parameter in parameters}


async def _verdicts(cluster: object) -> dict[str, object]:
    """Scores of a verifier that spins for ever, and of a good one right after it."""
    from lpo_ray.errors import GroupLost
    from tests.support.builders import make_prompt

    tokens = np.array([20, 21])
    response = Response(tokens, np.zeros(2, np.float32), np.zeros(2, np.int64), "stop")

    def group(verifier: str) -> PromptGroup:
        prompt = make_prompt(0)
        object.__setattr__(prompt, "verifier", verifier)
        return PromptGroup(prompt, 0, (response, response))

    seen: dict[str, object] = {}
    try:
        await cluster.verifier.score(group("tests.support.e2e_verifiers:spins"))
    except GroupLost as lost:
        seen["spins"] = lost.reason
    try:
        await cluster.verifier.score(group("tests.support.e2e_verifiers:dies"))
    except GroupLost as lost:
        seen["dies"] = lost.reason
    seen["good"] = (await cluster.verifier.score(group("countdown"))).rewards.tolist()
    return seen


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Finished:
    from actors.cluster import build_cluster, connect, disconnect

    spec = plan_of(tmp_path_factory.mktemp("runs"), tiny_policy)
    seen = Finished(spec.run_dir)

    async def build(spec: RunSpec, model_path: str, events: Events) -> Watched:
        return Watched(await build_cluster(spec, model_path, events), seen)

    connect(spec.config)
    try:
        recorder = recorder_of(spec, tiny_policy, Console(quiet=True))
        with held(spec, print) as folder:
            run_until_signal(lambda signals: train(folder, str(tiny_policy), build, recorder, signals))
    finally:
        disconnect()
    return seen


def test_vllm_serves_the_learners_weights(finished: Finished) -> None:
    assert largest_difference(finished.expected, finished.served) < 1e-4


def test_the_served_weights_are_those_of_the_checkpoint_and_no_longer_the_first(
    finished: Finished, tiny_policy: Path
) -> None:
    def logprobs(path: Path) -> list[np.ndarray]:
        model = AutoModelForCausalLM.from_pretrained(path)
        with torch.no_grad():
            return [
                model(torch.from_numpy(s)[None]).logits[0, :-1].log_softmax(-1).gather(1, torch.from_numpy(s)[1:, None])
                [:, 0].numpy()
                for s in PROBE
            ]  # fmt: skip

    saved = finished.folder / "checkpoints" / f"step_{STEPS:06d}" / "policy"
    assert largest_difference(logprobs(saved), finished.served) < 1e-4
    assert largest_difference(logprobs(tiny_policy), finished.served) > 1e-2


def test_two_ranks_hold_different_shards(finished: Finished) -> None:
    left, right = finished.shards
    assert left.keys() == right.keys()
    different = [name for name in left if left[name] != right[name]]
    assert len(different) > len(left) / 2


def test_the_ledger_has_every_issued_prompt_once(finished: Finished) -> None:
    with sqlite3.connect(finished.folder / "ledger.sqlite") as ledger:
        rows = ledger.execute("SELECT data_index, prompt_id, attempt, state, step FROM attempts ORDER BY 1").fetchall()
        commits = ledger.execute("SELECT step FROM commits ORDER BY step").fetchall()
    assert [row[0] for row in rows] == list(range(STEPS * GROUPS))
    assert len({row[1] for row in rows}) == STEPS * GROUPS
    assert all(row[2:4] == (0, "trained") for row in rows)
    assert [row[4] for row in rows] == [1 + index // GROUPS for index in range(STEPS * GROUPS)]
    assert commits == [(1,), (2,)]


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_the_samples_reproduce_the_logged_loss(finished: Finished, step: int) -> None:
    metrics = json.loads((finished.folder / "metrics.jsonl").read_text().splitlines()[step - 1])
    rows = pq.read_table(finished.folder / "samples" / f"step_{step:06d}.parquet").to_pylist()
    assert len(rows) == GROUPS * SIZE
    losses: dict[int, list[float]] = {0: [], 1: []}
    for prompt_id in sorted({row["prompt_id"] for row in rows}):
        group = [row for row in rows if row["prompt_id"] == prompt_id]
        log_ratio, log_target = (torch.tensor([[row[key] for row in group]]) for key in ("log_ratio", "log_target"))
        projection = project(group[0]["divergence"], log_ratio, log_target)
        losses[group[0]["update"]].append(float(projection.loss))
        assert projection.coefficient[0].tolist() == pytest.approx([row["coefficient"] for row in group], abs=1e-6)
    assert np.mean(losses[0] + losses[1]) == pytest.approx(metrics["loss"], abs=1e-6)
    for update, values in losses.items():
        assert np.mean(values) == pytest.approx(metrics["loss_per_update"][update], abs=1e-6)


def test_every_token_carries_the_version_that_sampled_it(finished: Finished) -> None:
    for step in range(1, STEPS + 1):
        rows = pq.read_table(finished.folder / "samples" / f"step_{step:06d}.parquet").to_pylist()
        assert {version for row in rows for version in row["versions"]} == {step - 1}


def test_engine_and_learner_agree_on_every_sampled_token(finished: Finished) -> None:
    metrics = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["engine_mismatch"] < 1e-3 for row in metrics)
    assert all(row["gradient_norm"] > 0 and row["staleness_max"] == 0 for row in metrics)


def test_a_verifier_that_hangs_or_dies_is_unscored_and_the_pool_goes_on(finished: Finished) -> None:
    assert "no verdict within 1 s; its process was killed" in finished.verdicts["spins"]
    assert "died with exit code" in finished.verdicts["dies"]
    assert finished.verdicts["good"] == [0.0, 0.0]


def test_the_run_folder_is_complete(finished: Finished) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names >= {
        "config.yaml", "metrics.jsonl", "ledger.sqlite", "samples", "checkpoints", "tensorboard", "report.html",
        "summary.json",
    }  # fmt: skip
    assert list((finished.folder / "tensorboard").glob("events.*"))
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert summary["evaluation"]["after"]["num_prompts"] == 6


def test_engines_and_verifiers_give_way_to_the_ranks(finished: Finished) -> None:
    """With every thread: the one that decodes is not the main one."""
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    ranks = [niceness for name, niceness in finished.niceness.items() if name.startswith("learner rank")]
    assert len(ranks) == 2 and all(niceness == {mine} for niceness in ranks)
    assert min(finished.niceness["verifier service"] | finished.niceness["rollout worker 0"]) > mine


def test_no_process_stays_behind(finished: Finished) -> None:
    assert len(finished.pids) == 5
    _, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in finished.pids.values() if psutil.pid_exists(pid)], timeout=20
    )
    assert alive == []
