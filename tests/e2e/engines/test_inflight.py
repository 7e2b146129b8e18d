"""Weights that change while responses are decoded, in every mode and on both engines.

Five feeders sample one group after the other, with responses of different lengths, and more of them than the engine
decodes at once: so whenever an update begins, some responses are half done and others wait for their first token.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.cluster import Cluster
from actors.rollout.inflight import RULES
from actors.rollout.worker import RolloutWorker
from lpo_ray.config.schema import Inflight
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import Prompt, PromptGroup, Response, Sampling
from tests.support.builders import make_prompt
from tests.support.clusters import Standing
from tests.support.transported_models import VOCABULARY, on_ranks, perturb, reference

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]
FEEDERS, GROUP, PROMPT = 5, 4, 70
MODES = [mode for mode in Inflight if not RULES[mode].keeps_versions]
"""the other is of adapters alone: test_adapters.py"""
TOLERANCE = 1e-3


@dataclass
class Case:
    """One publish in the middle of sampling."""

    step: int
    """of the weights that were published; those before it are of step - 1"""
    groups: list[PromptGroup] = field(default_factory=list)
    after: list[PromptGroup] = field(default_factory=list)
    """begun after the update, of the same prompts"""
    asked: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Seen:
    models: dict[int, torch.nn.Module] = field(default_factory=dict)
    """of each step"""
    cases: dict[Inflight, Case] = field(default_factory=dict)
    stop_tokens: tuple[int, ...] = ()
    probe_overtakes: bool = False


def follow(worker: RolloutWorker, mode: Inflight) -> Inflight:
    """Starting an engine for each mode would take most of the test's time. Returns the mode it was started with."""
    worker._rule = worker._engine._rule = RULES[mode]
    return worker._settings.inflight


def prompt(number: int) -> Prompt:
    return make_prompt(number, length=PROMPT, vocabulary=VOCABULARY)


def sampling(number: int) -> Sampling:
    return Sampling(group_size=GROUP, temperature=1.0, max_tokens=60 + 30 * number, seed=5)


async def publish_under_load(cluster: Cluster, case: Case) -> None:
    some, published = asyncio.Event(), asyncio.Event()

    async def feed(number: int) -> None:
        for attempt in itertools.count(100 * case.step):
            case.asked.append((prompt(number).prompt_id, attempt))
            case.groups.append(await cluster.rollout.sample(prompt(number), sampling(number), attempt))
            some.set()
            if published.is_set():
                return

    async with asyncio.TaskGroup() as feeding:
        for number in range(FEEDERS):
            feeding.create_task(feed(number))
        await some.wait()
        await asyncio.sleep(0.05)  # for the next group to reach the engine, where it waits with a prompt that is cached
        await cluster.transport.publish(case.step)
        case.after = [await cluster.rollout.sample(prompt(number), sampling(0), case.step) for number in range(FEEDERS)]
        published.set()


async def overtakes(cluster: Cluster) -> bool:
    """Whether a probe is answered before a group of one token a response that came before it, on a full engine."""
    sample, member = cluster.rollout.sample, cluster.rollout.members[0]
    long = [asyncio.create_task(sample(prompt(number), sampling(0), 1)) for number in range(3 * FEEDERS)]
    await asyncio.sleep(0.2)
    short = asyncio.create_task(sample(prompt(0), replace(sampling(0), max_tokens=1), 2))
    await asyncio.sleep(0.2)
    await member.worker.handle.logprobs.remote([prompt(1).token_ids])
    early = not short.done()
    await asyncio.gather(short, *long)
    return early


@pytest.fixture(scope="module")
def seen(standing: Standing, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return standing.run(look(standing, tmp_path_factory.mktemp("weights")))


async def look(standing: Standing, folder: Path) -> Seen:
    cluster = standing.cluster
    learner, (member,) = cluster.learner, cluster.pool.members
    found = Seen(stop_tokens=(Tokenizer.load(str(standing.policy)).eos_token_id, VOCABULARY - 1))  # and the model's own
    first = standing.next_step()
    found.models[first] = await reference(learner, folder / f"step{first}", "float32")
    await cluster.transport.publish(first)
    started_with = standing.spec.config.pipeline.inflight
    for mode in MODES:
        assert await member.worker.handle.__ray_call__.remote(follow, mode) is started_with
        step = standing.next_step()
        await on_ranks(learner, perturb, step)
        found.models[step] = await reference(learner, folder / f"step{step}", "float32")
        case = found.cases[mode] = Case(step)
        await publish_under_load(cluster, case)
    found.probe_overtakes = await overtakes(cluster)
    await member.worker.handle.__ray_call__.remote(follow, started_with)
    assert [status.restarts for status in cluster.pool.statuses()] == [0]
    return found


@torch.no_grad()
def logprobs_under(model: torch.nn.Module, group: PromptGroup, response: Response) -> np.ndarray:
    """[T] of the response, of a full forward."""
    sequence = torch.from_numpy(np.concatenate([group.prompt.token_ids, response.token_ids]))
    scores = model(sequence[None]).logits[0, PROMPT - 1 : -1].log_softmax(-1)
    return scores.gather(1, sequence[PROMPT:, None])[:, 0].numpy()


@torch.no_grad()
def logprobs_on_old_keys(
    old: torch.nn.Module, new: torch.nn.Module, group: PromptGroup, response: Response, cut: int
) -> np.ndarray:
    """Of the tokens from ``cut`` on: the old weights computed keys and values of all before the last of them."""
    sequence = torch.from_numpy(np.concatenate([group.prompt.token_ids, response.token_ids]))
    computed = PROMPT + cut - 1
    past = old(sequence[None, :computed], use_cache=True).past_key_values
    scores = new(sequence[None, computed:-1], past_key_values=past).logits[0].log_softmax(-1)
    return scores.gather(1, sequence[computed + 1 :, None])[:, 0].numpy()


def responses(groups: list[PromptGroup]) -> list[tuple[PromptGroup, Response]]:
    return [(group, response) for group in groups for response in group.responses]


def differences(seen: Seen, group: PromptGroup, response: Response) -> np.ndarray:
    """[T] of each recorded log-prob to a full forward of the weights of the token's version."""
    expected = np.empty_like(response.behaviour_logprobs)
    for version in set(response.versions.tolist()):
        mine = response.versions == version
        expected[mine] = logprobs_under(seen.models[version], group, response)[mine]
    return np.abs(expected - response.behaviour_logprobs)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_lost(seen: Seen, mode: Inflight) -> None:
    case = seen.cases[mode]
    assert sorted(group.key for group in case.groups) == sorted(case.asked)
    for group, response in responses(case.groups):
        number = int(group.prompt.prompt_id[-1])
        full = len(response.token_ids) == sampling(number).max_tokens
        assert full if response.finish_reason == "length" else response.token_ids[-1] in seen.stop_tokens


@pytest.mark.parametrize("mode", MODES)
def test_versions_only_grow_and_only_finish_keeps_a_response_to_one(seen: Seen, mode: Inflight) -> None:
    case = seen.cases[mode]
    both = 0
    for _, response in responses(case.groups):
        assert set(response.versions.tolist()) <= {case.step - 1, case.step}
        assert (np.diff(response.versions) >= 0).all()
        both += len(set(response.versions.tolist())) == 2
    assert both == 0 if mode is Inflight.finish else both >= GROUP
    assert {version for _, r in responses(case.groups) for version in r.versions.tolist()} == {case.step - 1, case.step}


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode is not Inflight.keep_cache])
def test_every_logprob_is_that_of_the_weights_of_its_version(seen: Seen, mode: Inflight) -> None:
    for group, response in responses(seen.cases[mode].groups):
        assert differences(seen, group, response).max() < TOLERANCE


def test_with_kept_keys_the_rest_is_sampled_from_new_weights_on_old_keys(
    seen: Seen, record_property: Callable[[str, object], None]
) -> None:
    case = seen.cases[Inflight.keep_cache]
    old, new = seen.models[case.step - 1], seen.models[case.step]
    rests = []
    for group, response in responses(case.groups):
        found = differences(seen, group, response)
        cut = int((response.versions < case.step).sum())
        if 0 < cut < len(found):
            rests.append(found[cut:])
            expected = logprobs_on_old_keys(old, new, group, response, cut)
            assert np.abs(expected - response.behaviour_logprobs[cut:]).max() < TOLERANCE
            found = found[:cut]
        assert found.max() < TOLERANCE  # also of those that begin after the update, with a prompt that was cached
    rest = np.concatenate(rests)
    assert rest.max() > TOLERANCE
    record_property("largest difference to the new weights alone", float(rest.max()))
    record_property("mean difference to the new weights alone", float(rest.mean()))


@pytest.mark.parametrize("mode", MODES)
def test_a_request_that_begins_after_the_update_is_of_the_new_weights_alone(seen: Seen, mode: Inflight) -> None:
    case = seen.cases[mode]
    for group, response in responses(case.after):
        assert set(response.versions.tolist()) == {case.step}
        assert differences(seen, group, response).max() < TOLERANCE


def test_a_probe_does_not_wait_for_the_requests_that_wait(seen: Seen) -> None:
    assert seen.probe_overtakes
