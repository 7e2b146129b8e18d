"""The in-process engine: company does not change a group, and what it draws has the probability that it says."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lpo_ray.learner.torch_learner import TorchScorer
from lpo_ray.policy.generation import end_tokens
from lpo_ray.policy.loading import load_policy
from lpo_ray.policy.scoring import response_logprobs
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import ConversationId, Prompt, PromptGroup, Sampling, TurnRequest
from lpo_ray.rollout.transformers_engine import TransformersEngine
from tests.support.model_folders import llama, write_model

SAMPLING = Sampling(group_size=4, temperature=1.0, max_tokens=5, seed=3)


@pytest.fixture(scope="module")
def engine(tiny_policy: Path) -> TransformersEngine:
    tokenizer = Tokenizer.load(str(tiny_policy))
    return TransformersEngine(
        load_policy(str(tiny_policy), "float32"), [tokenizer.eos_token_id], tokenizer.pad_token_id, 16
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


@pytest.mark.parametrize(
    "generation",
    [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 10}, {"suppress_tokens": [5, 6, 7]},
     {"temperature": 0.1, "top_k": 2, "do_sample": True}, {"forced_eos_token_id": 7}, {"max_length": 6},
     {"begin_suppress_tokens": [5, 6]}, {"guidance_scale": 2.0}, {"num_beams": 3}, {"encoder_no_repeat_ngram_size": 2}],
    ids=lambda generation: next(iter(generation)),
)  # fmt: skip
async def test_it_samples_the_policy_whatever_the_generation_config_of_its_model(
    tmp_path: Path, generation: dict[str, object]
) -> None:
    """Log-probs are the policy's, and so are the tokens: those of the model without such a config."""
    sampling = replace(SAMPLING, max_tokens=24)
    folders = [write_model(tmp_path / "with", llama(), generation), write_model(tmp_path / "without", llama())]
    groups = []
    for folder in folders:
        engine = TransformersEngine(load_policy(str(folder), "float32"), [2], 0, 16)
        groups.append(group := await sampled(engine, prompt(1), sampling))
        scorer = TorchScorer(load_policy(str(folder), "float32"))
        expected = response_logprobs(scorer, [(group.prompt.token_ids, [r.segments for r in group.responses])])
        for response, row in zip(group.responses, expected, strict=True):
            np.testing.assert_allclose(response.behaviour_logprobs, row, atol=1e-4)
    for one, other in zip(*(group.responses for group in groups), strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)


async def test_every_end_token_of_the_generation_config_ends_a_response(tmp_path: Path) -> None:
    """As transformers' generate and vLLM have them; without the file they are in config.json."""
    folder = write_model(tmp_path / "model", llama(), {"eos_token_id": [50, 2, 60]})
    bare = write_model(tmp_path / "bare", llama(eos_token_id=[50, 60]))
    (bare / "generation_config.json").unlink()
    for path in (folder, bare):
        model = load_policy(str(path), "float32")
        assert sorted(end_tokens(model, 2)) == [2, 50, 60]
        with torch.no_grad():  # it says 50 after everything
            model.lm_head.weight.zero_()
            model.model.norm.weight.fill_(1.0)
            model.model.embed_tokens.weight.abs_()
            model.lm_head.weight[50] = 50.0
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
        engine = TransformersEngine(model, end_tokens(model, 2), 0, 16)
        group = await sampled(engine, prompt(1), replace(SAMPLING, max_tokens=12))
        assert [(response.token_ids.tolist(), response.finish_reason) for response in group.responses] == [
            ([50], "stop")
        ] * SAMPLING.group_size


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


async def test_turns_are_drawn_behind_their_contexts_alone_or_in_company(engine: TransformersEngine) -> None:
    names = [ConversationId("p0", 0, k) for k in range(3)]
    contexts = [prompt(number, 4).token_ids for number in range(3)]
    requests = [TurnRequest(*each, SAMPLING, 5) for each in zip(names, (0, 1, 2), contexts, strict=True)]
    group, *together = await asyncio.gather(sampled(engine, prompt(7, 4)), *map(engine.turn, requests))
    assert len(group.responses) == 4
    for request, turn in zip(requests, together, strict=True):
        alone = await engine.turn(request)
        np.testing.assert_array_equal(alone.token_ids, turn.token_ids)
        np.testing.assert_allclose(alone.behaviour_logprobs, turn.behaviour_logprobs, atol=1e-5)
        assert turn.versions.tolist() == [engine.step] * len(turn.token_ids)
    again = await engine.turn(replace(requests[0], draw=1))
    assert again.token_ids.tolist() != together[0].token_ids.tolist(), "another draw has another seed"
    assert len((await engine.turn(replace(requests[0], max_tokens=1))).token_ids) == 1
