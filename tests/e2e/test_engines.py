"""Both vLLM engines behind one surface, and the proof of weights when something is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from transformers import AutoModelForCausalLM

from actors.cluster import Cluster, build_cluster, connect, disconnect
from actors.learner_group import LearnerGroup
from actors.transports import TRANSPORTS
from lpo_ray.errors import GroupLost, WeightsNotProved
from lpo_ray.model import digest_of, probe_sequences
from lpo_ray.records import IntArray, PromptGroup, Sampling
from lpo_ray.run import run_until_signal
from tests.builders import make_prompt
from tests.e2e.test_real_stack import plan_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]
SAMPLING = Sampling(group_size=4, temperature=0.8, max_tokens=12, seed=3)


class Tampered:
    """A learner whose published bytes are changed on the way."""

    def __init__(self, learner: LearnerGroup, *, honest_digest: bool) -> None:
        self._learner, self._honest = learner, honest_digest

    async def weights(self) -> tuple[bytes, str]:
        payload, digest = await self._learner.weights()
        weights = load(payload)
        # only the embedding, which is also the output head: what a stale tied head would look like
        weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] * 1.05
        payload = save(weights)
        return payload, digest if self._honest else digest_of(payload)

    async def logprobs(self, sequences: list[IntArray]) -> list[np.ndarray]:
        return await self._learner.logprobs(sequences)


@pytest.fixture(scope="module", params=["inprocess", "asynchronous"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Iterator[dict]:
    plan = plan_of(
        tmp_path_factory.mktemp(request.param), tiny_policy, f"rollout.engine={request.param}", "learner.world_size=1"
    )
    found: dict[str, object] = {"policy": tiny_policy}

    async def use(cluster: Cluster) -> None:
        found["version"] = await cluster.transport.publish(0)
        prompt = make_prompt(1, length=9, vocabulary=90)
        found["groups"] = [await cluster.rollout.sample(prompt, SAMPLING, attempt) for attempt in (0, 0, 1)]
        for name, honest in (("wrong bytes", True), ("wrong weights", False)):
            tampered = Tampered(cluster.learner, honest_digest=honest)
            transport = TRANSPORTS["object_store"](tampered, cluster.rollout, probe_sequences(90, 64), 1e-3, 60.0)
            with pytest.raises(WeightsNotProved) as caught:
                await transport.publish(1)
            found[name] = caught.value
        found["again"] = await cluster.transport.publish(2)
        found["after"] = await cluster.rollout.sample(prompt, SAMPLING, 0)
        long = make_prompt(2, length=2048, vocabulary=90)
        with pytest.raises(GroupLost) as lost:
            await cluster.rollout.sample(long, SAMPLING, 0)
        found["lost"] = lost.value

    async def main(_: object) -> None:
        cluster = await build_cluster(plan, str(tiny_policy))
        try:
            await use(cluster)
        finally:
            await cluster.close()

    connect(plan.config)
    try:
        run_until_signal(main)
        yield found
    finally:
        disconnect()


def tokens(group: PromptGroup) -> list[list[int]]:
    return [response.token_ids.tolist() for response in group.responses]


def test_a_seed_gives_the_same_responses_and_another_attempt_others(seen: dict) -> None:
    first, again, other = seen["groups"]
    assert tokens(first) == tokens(again)
    assert tokens(first) != tokens(other)
    assert len({tuple(response) for response in tokens(first)}) == 4


def test_recorded_logprobs_are_those_of_the_tempered_policy(seen: dict) -> None:
    model = AutoModelForCausalLM.from_pretrained(seen["policy"])
    group = seen["groups"][0]
    for response in group.responses:
        start = len(group.prompt.token_ids)
        sequence = torch.from_numpy(np.concatenate([group.prompt.token_ids, response.token_ids]))
        with torch.no_grad():
            scores = (model(sequence[None]).logits[0, start - 1 : -1] / SAMPLING.temperature).log_softmax(-1)
        expected = scores.gather(1, sequence[start:, None])[:, 0].numpy()
        np.testing.assert_allclose(response.behaviour_logprobs, expected, atol=1e-4)
        assert set(response.versions) == {0}


def test_bytes_that_changed_on_the_way_are_refused(seen: dict) -> None:
    error = seen["wrong bytes"]
    assert error.engine == "rollout worker 0"
    assert "the bytes that arrived have digest" in str(error)


def test_weights_that_are_not_the_learners_are_refused(seen: dict) -> None:
    error = seen["wrong weights"]
    assert (error.engine, error.version.partition(":")[0]) == ("rollout worker 0", "1")
    assert error.difference > 1e-3
    assert "its log-probs of the probe are not the learner's" in str(error)


def test_the_next_publish_heals_it(seen: dict) -> None:
    assert seen["again"].digest == seen["version"].digest
    assert tokens(seen["after"]) == tokens(seen["groups"][0])
    assert {version for response in seen["after"].responses for version in response.versions} == {2}


def test_a_prompt_beyond_the_context_loses_its_group_not_the_engine(seen: dict) -> None:
    assert seen["lost"].prompt_id == "train-00000002"
    assert "rollout worker 0" in seen["lost"].reason
