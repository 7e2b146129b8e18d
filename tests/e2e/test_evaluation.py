"""Evaluation on the real stack. Beside a run, on an engine that is lent: its weights stay those of their step while the
run goes on, and then it serves the current ones, proved. By itself: engines and verifier, and no learner.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.cluster import Cluster, connect, disconnect, open_engines
from lpo_ray.records import PromptGroup, Sampling
from lpo_ray.run.signals import run_until_signal
from lpo_ray.telemetry.evaluations import read_evaluations
from tests.support.builders import make_prompt
from tests.support.clusters import on_cluster
from tests.support.fakes import FakeEvents
from tests.support.live_runs import DIGITS, Run, finish
from tests.support.real_specs import plan_of
from tests.support.transported_models import VOCABULARY, make_model, on_ranks, perturb, reference

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(500)]
SAMPLING = Sampling(group_size=2, temperature=1.0, max_tokens=12, seed=1)
PROMPT = make_prompt(3, length=20, vocabulary=VOCABULARY)


@dataclass
class Seen:
    models: list[torch.nn.Module] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    lent: PromptGroup | None = None
    others: PromptGroup | None = None
    back: list[str] = field(default_factory=list)


def difference(group: PromptGroup, model: torch.nn.Module) -> float:
    """Largest, of its recorded log-probs to the model's."""
    found = 0.0
    for response in group.responses:
        sequence = torch.from_numpy(np.concatenate([group.prompt.token_ids, response.token_ids]))
        with torch.no_grad():
            scores = model(sequence[None]).logits[0, len(group.prompt.token_ids) - 1 : -1].float().log_softmax(-1)
        expected = scores.gather(1, torch.from_numpy(response.token_ids)[:, None])[:, 0].numpy()
        found = max(found, float(np.abs(expected - response.behaviour_logprobs).max()))
    return found


@pytest.mark.parametrize("transport", ["shared_memory", pytest.param("gloo", marks=pytest.mark.long)])
def test_a_lent_engine_keeps_its_weights_through_publishes_and_then_has_the_last(
    transport: str, tmp_path: Path, tiny_policy: Path
) -> None:
    policy = make_model(tmp_path / "policy", "qwen3", True, tiny_policy)
    spec = plan_of(
        tmp_path, policy, "rollout.num_workers=2", "learner.world_size=1", "rollout.kv_cache_gib=0.2",
        f"transport.kind={transport}", "supervision.max_restarts=0",
    )  # fmt: skip
    seen = Seen()

    async def use(cluster: Cluster) -> None:
        seen.models.append(await reference(cluster.learner, tmp_path / "step0", "float32"))
        await cluster.transport.publish(0)
        lent = cluster.lend()
        assert lent is not None
        async with lent as engine:
            for step in (1, 2):
                await on_ranks(cluster.learner, perturb, step)
                published = await cluster.transport.publish(step)
            seen.models.append(await reference(cluster.learner, tmp_path / "step2", "float32"))
            seen.lent = await engine.sample(PROMPT, SAMPLING, 0)
            seen.others = await cluster.rollout.sample(PROMPT, SAMPLING, 1)
            seen.served = sorted(f"{worker.state} {worker.version}" for worker in cluster.rollout.statuses())
        for _ in range(600):
            seen.back = [f"{worker.state} {worker.version}" for worker in cluster.rollout.statuses()]
            if seen.back == [f"serving {published.version}"] * 2:
                break
            await asyncio.sleep(0.1)
        await cluster.transport.publish(3)

    on_cluster(spec, policy, use)
    assert seen.lent is not None
    assert seen.others is not None
    first, last = seen.models
    assert difference(seen.lent, first) < 1e-3 < difference(seen.lent, last)
    assert difference(seen.others, last) < 1e-3 < difference(seen.others, first)
    assert {int(version) for response in seen.lent.responses for version in response.versions} == {0}
    assert [state.split()[0] for state in seen.served] == ["lent", "serving"]
    assert len(set(seen.back)) == 1
    assert seen.back[0].startswith("serving 2"), seen.back


@pytest.mark.long
def test_a_run_goes_on_while_it_is_evaluated(tmp_path: Path, tiny_policy: Path) -> None:
    run = Run(
        tmp_path, tiny_policy, DIGITS, "rollout.num_workers=2", "run.steps=6", "evaluation.every=2",
        "evaluation.num_prompts=64", "evaluation.samples_per_prompt=16",
    )  # fmt: skip
    output = finish(run)
    assert run.process.returncode == 0, output
    assert sorted(read_evaluations(run.folder / "evaluations.json")) == [0, 2, 4, 6]
    metrics = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert any(step["workers_lent"] for step in metrics), "no step ended while an engine was lent"
    assert all(step["workers_lent"] == 0 for step in metrics if step["step"] in (1, 2)), "nothing was lent before"


@dataclass
class Alone:
    groups: list[PromptGroup] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    back: list[str] = field(default_factory=list)


@pytest.mark.parametrize("engine", ["inprocess", pytest.param("asynchronous", marks=pytest.mark.long)])
def test_engines_that_only_evaluate_serve_the_folder_and_need_no_learner(
    engine: str, tmp_path: Path, tiny_policy: Path
) -> None:
    policy = make_model(tmp_path / "policy", "qwen3", True, tiny_policy)
    spec = plan_of(tmp_path, policy, "rollout.num_workers=2", "rollout.kv_cache_gib=0.2", f"rollout.engine={engine}")
    seen = Alone()

    async def use(_: object) -> None:
        async with open_engines(spec, str(policy), FakeEvents()) as (rollout, _):
            seen.groups += await asyncio.gather(*(rollout.sample(PROMPT, SAMPLING, attempt) for attempt in range(2)))
            children = psutil.Process().children(recursive=True)
            seen.processes = [" ".join(one.as_dict(["cmdline"], ad_value=[])["cmdline"]) for one in children]
            psutil.Process(rollout.members[1].process.pid).kill()
            while any(worker.restarts == 0 for worker in rollout.statuses()[1:]):
                await asyncio.gather(*(rollout.sample(PROMPT, SAMPLING, 2) for _ in range(2)), return_exceptions=True)
                await asyncio.sleep(0.1)
            while not all(worker.state == "serving" for worker in rollout.statuses()):
                await asyncio.sleep(0.1)
            seen.back = [str(worker.version) for worker in rollout.statuses()]
            member = rollout.members[-1]
            seen.groups.append(await member.worker.sample(PROMPT, SAMPLING, 0))

    connect(spec.config)
    try:
        run_until_signal(use)
    finally:
        disconnect()
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    assert all(difference(group, model) < 1e-3 for group in seen.groups)
    versions = {int(version) for group in seen.groups for one in group.responses for version in one.versions}
    assert versions == {0}
    assert sum("RolloutWorker" in name for name in seen.processes) == 2
    assert not any("LearnerWorker" in name for name in seen.processes)
    assert seen.back == ["0:as loaded"] * 2
    tokens = [[one.token_ids.tolist() for one in seen.groups[n].responses] for n in (0, -1)]
    assert tokens[0] == tokens[1], "the replacement samples something else with the same seed"
