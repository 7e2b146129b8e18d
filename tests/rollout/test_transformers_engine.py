"""The in-process engine: company does not change a group, and what it draws has the probability that it says."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lpo_ray.policy.loading import load_policy
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import Prompt, PromptGroup, Sampling
from lpo_ray.rollout.transformers_engine import TransformersEngine

SAMPLING = Sampling(group_size=4, temperature=1.0, max_tokens=5, seed=3)


@pytest.fixture(scope="module")
def engine(tiny_policy: Path) -> TransformersEngine:
    tokenizer = Tokenizer.load(str(tiny_policy))
    return TransformersEngine(
        load_policy(str(tiny_policy), "float32"), tokenizer.eos_token_id, tokenizer.pad_token_id, 16
    )


def prompt(number: int, length: int = 4) -> Prompt:
    token_ids = np.random.default_rng(number).integers(5, 20, length)
    return Prompt(f"p{number}", token_ids, "", "")


async def sampled(engine: TransformersEngine, asked: Prompt, sampling: Sampling = SAMPLING) -> PromptGroup:
    return await engine.sample(asked, sampling, 0)


async def test_company_does_not_change_a_group(engine: TransformersEngine) -> None:
    prompts = [prompt(number, 4 + number % 2) for number in range(11)]
    rows: list[int] = []
    hook = engine._model.register_forward_pre_hook(
        lambda _, args, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    together = await asyncio.gather(*(sampled(engine, each) for each in prompts))
    hook.remove()
    assert max(rows) == 16, "four groups of four at most are one batch"
    for each, group in zip(prompts, together, strict=True):
        alone = await sampled(engine, each)
        assert group.prompt is each
        for one, other in zip(alone.responses, group.responses, strict=True):
            np.testing.assert_array_equal(one.token_ids, other.token_ids)
            np.testing.assert_allclose(one.behaviour_logprobs, other.behaviour_logprobs, atol=1e-5)


async def test_a_token_is_drawn_as_often_as_its_logprob_says(engine: TransformersEngine) -> None:
    sampling = replace(SAMPLING, group_size=4000, max_tokens=1, temperature=0.7)
    group = await sampled(engine, prompt(1), sampling)
    counts = Counter(int(response.token_ids[0]) for response in group.responses)
    logprobs = {int(response.token_ids[0]): float(response.behaviour_logprobs[0]) for response in group.responses}
    with torch.no_grad():
        logits = engine._model(torch.from_numpy(prompt(1).token_ids)[None]).logits[0, -1]
    expected = (logits / 0.7).log_softmax(-1)
    for token, count in counts.most_common(5):
        probability = float(expected[token].exp())
        assert logprobs[token] == pytest.approx(float(expected[token]), abs=1e-4)
        assert count / 4000 == pytest.approx(probability, abs=5 * (probability * (1 - probability) / 4000) ** 0.5)


async def test_no_token_outside_top_k_is_drawn(engine: TransformersEngine) -> None:
    sampling = replace(SAMPLING, group_size=500, max_tokens=1, top_k=2)
    group = await sampled(engine, prompt(2), sampling)
    with torch.no_grad():
        likeliest = engine._model(torch.from_numpy(prompt(2).token_ids)[None]).logits[0, -1].topk(2).indices.tolist()
    drawn = {int(response.token_ids[0]): float(response.behaviour_logprobs[0]) for response in group.responses}
    assert set(drawn) <= set(likeliest)
    assert sum(np.exp(list(drawn.values()))) == pytest.approx(1.0, abs=1e-4)


async def test_at_temperature_0_it_is_the_likeliest(engine: TransformersEngine) -> None:
    group = await sampled(engine, prompt(3), replace(SAMPLING, temperature=0.0))
    first, *others = group.responses
    assert all((other.token_ids == first.token_ids).all() for other in others)


async def test_an_error_goes_to_all_who_asked_and_the_next_batch_goes_on(engine: TransformersEngine) -> None:
    bad = replace(SAMPLING, max_tokens=-1)
    found = await asyncio.gather(
        sampled(engine, prompt(1), bad), sampled(engine, prompt(2), bad), sampled(engine, prompt(3)),
        return_exceptions=True,
    )  # fmt: skip
    assert [isinstance(each, Exception) for each in found] == [True, True, False]


async def test_who_gave_up_does_not_take_the_others_with_it(engine: TransformersEngine) -> None:
    given_up = asyncio.ensure_future(sampled(engine, prompt(1)))
    kept = asyncio.ensure_future(sampled(engine, prompt(2)))
    await asyncio.sleep(0)
    given_up.cancel()
    assert len((await kept).responses) == SAMPLING.group_size


async def test_stop_tokens_end_a_response(engine: TransformersEngine) -> None:
    stops = tuple(range(0, 400, 3))
    group = await sampled(engine, prompt(3), replace(SAMPLING, max_tokens=40, stop_token_ids=stops))
    assert {response.finish_reason for response in group.responses} == {"stop"}
    for response in group.responses:
        *before, last = response.token_ids.tolist()
        assert last % 3 == 0 or last == engine._eos
        assert not [token for token in before if token % 3 == 0]
