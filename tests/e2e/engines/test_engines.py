"""Both vLLM engines behind one surface."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.cluster import _publisher
from actors.transports.table import TRANSPORTS
from lpo_ray.errors import GroupLost
from lpo_ray.records import PromptGroup, Sampling
from lpo_ray.run.settings import proof_limits
from tests.support.builders import make_prompt
from tests.support.clusters import Standing

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]
SAMPLING = Sampling(group_size=4, temperature=0.8, max_tokens=12, seed=3)
TRANSPORTED = ("gloo", "object_store", "shared_memory")
"""the last is what the cluster goes on with"""


@pytest.fixture(scope="module")
def seen(standing: Standing) -> dict:
    return standing.run(look(standing))


async def look(standing: Standing) -> dict[str, object]:
    cluster, policy = standing.cluster, standing.policy
    found: dict[str, object] = {"policy": policy}
    found["version"] = (await cluster.transport.publish(standing.next_step())).version
    prompt = make_prompt(1, length=9, vocabulary=90)
    found["groups"] = [await cluster.rollout.sample(prompt, SAMPLING, attempt) for attempt in (0, 0, 1)]
    stop = found["stop"] = int(found["groups"][0].responses[0].token_ids[2])
    found["stopped"] = await cluster.rollout.sample(prompt, replace(SAMPLING, stop_token_ids=(stop,)), 0)
    found["again"] = (await cluster.transport.publish(standing.next_step())).version
    found["after"] = await cluster.rollout.sample(prompt, SAMPLING, 0)
    for kind in TRANSPORTED:
        proof = proof_limits(standing.spec, str(policy))
        cluster.transport = await _publisher(standing.spec, cluster.learner, cluster.pool, TRANSPORTS[kind], proof)
        step = standing.next_step()
        found[kind] = (step, (await cluster.transport.publish(step)).version)
    long = make_prompt(2, length=2048, vocabulary=90)
    with pytest.raises(GroupLost) as lost:
        await cluster.rollout.sample(long, SAMPLING, 0)
    found["lost"] = lost.value
    return found


def tokens(group: PromptGroup) -> list[list[int]]:
    return [response.token_ids.tolist() for response in group.responses]


def test_a_seed_gives_the_same_responses_and_another_attempt_others(seen: dict) -> None:
    first, again, other = seen["groups"]
    assert tokens(first) == tokens(again)
    assert tokens(first) != tokens(other)
    assert len({tuple(response) for response in tokens(first)}) == 4


def test_a_stop_token_ends_a_response_and_is_part_of_it(seen: dict) -> None:
    ended = 0
    for whole, cut in zip(tokens(seen["groups"][0]), seen["stopped"].responses, strict=True):
        length = whole.index(seen["stop"]) + 1 if seen["stop"] in whole else len(whole)
        assert cut.token_ids.tolist() == whole[:length]
        assert len(cut.behaviour_logprobs) == length
        if length < SAMPLING.max_tokens:
            assert cut.finish_reason == "stop"
            ended += 1
    assert ended


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
        assert set(response.versions) == {seen["version"].step}


def test_a_second_publish_of_the_same_weights_changes_their_step_only(seen: dict) -> None:
    assert seen["again"].digest == seen["version"].digest
    assert seen["again"].step > seen["version"].step
    assert tokens(seen["after"]) == tokens(seen["groups"][0])
    assert {version for response in seen["after"].responses for version in response.versions} == {seen["again"].step}


def test_weights_reach_it_by_every_transport_also_in_a_process_of_its_own(seen: dict) -> None:
    for kind in TRANSPORTED:
        step, version = seen[kind]
        assert (version.step, version.digest) == (step, seen["version"].digest)


def test_a_prompt_beyond_the_context_loses_its_group_not_the_engine(seen: dict) -> None:
    assert seen["lost"].prompt_id == "train-00000002"
    assert "rollout worker 0" in seen["lost"].reason
