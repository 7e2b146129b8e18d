"""The pieces of a forward: layout, packed attention, chunked head; each against the plain way to do it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from lpo_ray.errors import ConfigError
from lpo_ray.learner.torch_learner import TorchScorer
from lpo_ray.policy import layout as layout_module
from lpo_ray.policy import logprob_head as head
from lpo_ray.policy.attention import packed_attention, supports_packing
from lpo_ray.policy.layout import lay_out
from lpo_ray.policy.logprob_head import LogitShape, ScoringHead
from lpo_ray.policy.scoring import response_logprobs, score_bundles
from lpo_ray.policy.weights_proof import as_bundles
from lpo_ray.records import ScoringItem, Segment

BUNDLES = st.lists(
    st.tuples(st.integers(1, 20), st.lists(st.integers(1, 12), min_size=1, max_size=4)), min_size=1, max_size=4
)


def bundles_of(sizes: list[tuple[int, list[int]]]) -> list[ScoringItem]:
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, 50, prompt), [(Segment.answer(rng.integers(0, 50, length)),) for length in lengths])
        for prompt, lengths in sizes
    ]


@given(BUNDLES, st.sampled_from([(False, False), (True, False), (True, True)]))
def test_every_token_has_its_place_its_position_and_its_predecessor(
    sizes: list[tuple[int, list[int]]], layout_kind: tuple[bool, bool]
) -> None:
    packed, share = layout_kind
    bundles = bundles_of(sizes)
    layout = lay_out(bundles, packed=packed, share_prompt=share)
    tokens, positions = layout.token_ids.flatten().numpy(), layout.position_ids.flatten().numpy()
    row = 0
    at = 0
    for prompt, responses in bundles:
        for response in (answer.token_ids for (answer,) in responses):
            assert layout.lengths[row] == len(response)
            for i, token in enumerate(response):
                before = prompt[-1] if i == 0 else response[i - 1]
                assert tokens[layout.select[at]] == before
                assert positions[layout.select[at]] == len(prompt) - 1 + i
                assert layout.targets[at] == token
                at += 1
            row += 1
    assert at == len(layout.targets)
    prompts = sum(len(prompt) * (1 if share else len(responses)) for prompt, responses in bundles)
    real = prompts + sum(len(answer.token_ids) for _, responses in bundles for (answer,) in responses)
    assert layout.padding == pytest.approx(1 - real / layout.token_ids.numel())
    assert packed == (layout.padding == 0.0 and layout.rows is not None)


@settings(max_examples=30)
@given(BUNDLES, st.booleans())
def test_packed_attention_is_attention_over_each_sequence(sizes: list[tuple[int, list[int]]], share: bool) -> None:
    """Values and gradients, with grouped queries, against one sequence at a time."""
    layout = lay_out(bundles_of(sizes), packed=True, share_prompt=share)
    assert layout.rows is not None
    generator = torch.Generator().manual_seed(0)
    total = layout.token_ids.shape[1]
    query, key, value = (
        torch.randn(1, heads, total, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    )
    weight = torch.randn(1, total, 4, 8, generator=generator, dtype=torch.float64)
    found = packed_attention(torch.nn.Identity(), query, key, value, None, rows=layout.rows, scaling=0.3)[0]
    (found * weight).sum().backward()
    gradients = [tensor.grad.clone() for tensor in (query, key, value)]
    for tensor in (query, key, value):
        tensor.grad = None
    expected = torch.zeros_like(weight)
    start = 0
    for prompt, lengths in sizes:
        rows, first = [], start
        if share:
            start += prompt
        for length in lengths:
            before = range(first, first + prompt) if share else range(start, start + prompt)
            start += 0 if share else prompt
            rows.append([*before, *range(start, start + length)])
            start += length
        for row in rows:
            q, k, v = (tensor[:, :, row] for tensor in (query, key, value))
            out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
            expected = expected.index_copy(1, torch.tensor(row), out.transpose(1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    (expected * weight).sum().backward()
    for tensor, gradient in zip((query, key, value), gradients, strict=True):
        torch.testing.assert_close(gradient, tensor.grad, rtol=1e-10, atol=1e-12)


@given(
    tokens=st.integers(1, 9),
    chunk=st.integers(1, 12),
    temperature=st.sampled_from([1.0, 0.7, 2.0]),
    scale=st.sampled_from([1.0, 0.25]),
    cap=st.sampled_from([None, 1.5]),
    biased=st.booleans(),
)
def test_the_chunked_head_is_the_log_softmax(
    tokens: int, chunk: int, temperature: float, scale: float, cap: float | None, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    weight = torch.nn.Parameter(torch.randn(11, 4, generator=generator, dtype=torch.float64))
    bias = torch.nn.Parameter(torch.randn(11, generator=generator, dtype=torch.float64)) if biased else None
    hidden = torch.randn(tokens, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (tokens,), generator=generator)
    slope = torch.randn(tokens, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "CHUNK_ELEMENTS", chunk * 11)
        logprobs, entropy = ScoringHead(weight, bias, LogitShape(scale, cap))(hidden, targets, temperature)
    (logprobs * slope).sum().backward()
    parameters = [hidden, weight, *([] if bias is None else [bias])]
    found = [parameter.grad.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    logits = scale * torch.nn.functional.linear(hidden, weight, bias)
    log_softmax = ((logits if cap is None else cap * torch.tanh(logits / cap)) / temperature).log_softmax(-1)
    expected = log_softmax.gather(1, targets[:, None])[:, 0]
    (expected * slope).sum().backward()
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, -(log_softmax.exp() * log_softmax).sum(-1).detach())
    torch.testing.assert_close(found, [parameter.grad for parameter in parameters])
    assert not entropy.requires_grad


def test_a_chunk_has_thousands_of_tokens_on_gpus_whatever_the_vocabulary() -> None:
    for vocabulary in (1024, 49_152, 151_936):
        assert head.chunk_tokens(vocabulary, 2, on_gpu=True) == 4096  # each chunk adds a gradient of the head's size
    assert head.chunk_tokens(151_936, 2, on_gpu=False) == 220
    assert head.chunk_tokens(10**9, 4, on_gpu=False) == 1


def test_the_head_of_a_bfloat16_model_scores_in_fp32() -> None:
    weight, bias = (torch.nn.Parameter(torch.randn(300, *size).bfloat16()) for size in ((16,), ()))
    hidden = torch.randn(5, 16).bfloat16().requires_grad_()
    logprobs, _ = ScoringHead(weight, bias, LogitShape(0.5, 3.0))(hidden, torch.arange(5), 1.0)
    assert logprobs.dtype == torch.float32
    logprobs.sum().backward()
    assert weight.grad.dtype == bias.grad.dtype == hidden.grad.dtype == torch.bfloat16


SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 64}  # fmt: skip


def test_a_model_with_a_sliding_window_is_padded_unless_packing_is_asked_for() -> None:
    windowed = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4))
    assert not supports_packing(windowed)
    assert not TorchScorer(windowed).packed
    with pytest.raises(ConfigError, match=r"learner\.attention=packed, but MistralForCausalLM has attention"):
        TorchScorer(windowed, attention="packed")
    with pytest.raises(ConfigError, match=r"pipeline\.share_prompt=true, but MistralForCausalLM"):
        TorchScorer(windowed, share_prompt=True)
    assert supports_packing(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)))


@pytest.mark.parametrize("tied", [True, False])
def test_an_untied_head_and_another_family_score_as_their_own_forward_does(tied: bool) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=tied))
    sequence = np.arange(20) % 50
    with torch.no_grad():
        expected = model(torch.from_numpy(sequence)[None]).logits[0, :-1].log_softmax(-1)
    expected = expected.gather(1, torch.from_numpy(sequence)[1:, None])[:, 0].numpy()
    for attention in ("packed", "padded"):
        np.testing.assert_allclose(
            response_logprobs(TorchScorer(model, attention=attention), as_bundles([sequence]))[0], expected, atol=1e-5
        )
        model.set_attn_implementation("sdpa")


def test_a_head_that_is_not_linear_is_refused() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    model.lm_head = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 50))
    with pytest.raises(ConfigError, match=r"head of LlamaForCausalLM is not a linear layer \(Sequential\)"):
        TorchScorer(model)


def test_positions_are_learned_ones_too() -> None:
    """GPT-2 adds a vector for each position: packed or padded, a response starts behind its prompt."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=64, n_embd=16, n_layer=2, n_head=2)).eval()
    scorer = TorchScorer(model)
    bundle = bundles_of([(3, [4, 6])])
    together = score_bundles(scorer, bundle, 1.0).logprobs
    for row, response in enumerate(answer.token_ids for (answer,) in bundle[0][1]):
        alone = response_logprobs(scorer, as_bundles([np.concatenate([bundle[0][0], response])]))[0][2:]
        np.testing.assert_allclose(together[row, : len(response)].detach().numpy(), alone, atol=1e-5)


def test_short_responses_do_not_look_at_a_shared_prompt_for_its_own_tokens_again() -> None:
    """One row of prompt and response for each group, which is causal; the other responses are rows of their queries."""
    layout = lay_out(bundles_of([(100, [8] * 8), (90, [7, 5, 6, 70]), (4, [9, 9])]), packed=True, share_prompt=True)
    assert layout.rows is not None
    found = [(bucket.rows, bucket.queries, bucket.keys, bucket.mask is None) for bucket in layout.rows.buckets]
    assert found == [(2, 108, 108, True), (2, 13, 13, True), (2, 6, 96, False), (7, 8, 108, False), (1, 70, 160, False)]
    assert not layout.rows.in_place and not len(layout.rows.bounds)
    for bucket in layout.rows.buckets:
        assert bucket.mask is None or bool(bucket.mask.any(-1).all())  # no query that looks at nothing


def test_a_long_response_has_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_module, "MASKED_QUERIES", 8)
    layout = lay_out(bundles_of([(100, [3, 7, 8, 30])]), packed=True, share_prompt=True)
    assert layout.rows is not None
    assert [(bucket.rows, bucket.queries) for bucket in layout.rows.buckets] == [(1, 130), (1, 103), (1, 7), (1, 8)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share", [False, True])
def test_the_kernels_of_a_gpu_give_what_those_of_the_cpu_do(share: bool) -> None:
    """For unequal lengths without padding; behind shared prompts with a mask."""
    layout = lay_out(bundles_of([(5, [30, 7, 12]), (9, [3, 40]), (20, [3, 9])]), packed=True, share_prompt=share)
    assert layout.rows is not None
    total = layout.token_ids.shape[1]
    on_gpu = [torch.randn(1, heads, total, 64, device="cuda").bfloat16().requires_grad_() for heads in (4, 2, 2)]
    on_cpu = [tensor.detach().cpu().float().requires_grad_() for tensor in on_gpu]
    found = packed_attention(torch.nn.Identity(), *on_gpu, None, rows=layout.rows.to(torch.device("cuda")))[0]
    expected = packed_attention(torch.nn.Identity(), *on_cpu, None, rows=layout.rows)[0]
    torch.testing.assert_close(found.cpu().float(), expected, rtol=2e-2, atol=2e-2)
    found.float().square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(ours.grad.cpu().float(), theirs.grad, rtol=5e-2, atol=5e-2)
