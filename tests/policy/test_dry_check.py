"""The dry check: a model whose numbers depend on more than its weights and a response's own tokens is refused."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BioGptConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    MistralConfig,
    NemotronConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
    Starcoder2Config,
    XGLMConfig,
)

from lpo_ray.config import load_config
from lpo_ray.errors import ConfigError
from lpo_ray.learner.torch_learner import TorchScorer
from lpo_ray.policy.attention import supports_packing
from lpo_ray.policy.dry_check import check_numbers
from lpo_ray.policy.layout import Layout, lay_out
from lpo_ray.policy.loading import enable_checkpointing, load_policy
from lpo_ray.policy.scoring import response_logprobs
from lpo_ray.records import ScoringItem, Segment
from lpo_ray.run.inprocess import build_inprocess
from lpo_ray.run.spec import make_spec
from tests.support.model_folders import ROWS, SIZES, edit_weights, llama, random_model, write_model
from tests.support.real_specs import QUICKSTART

OTHERS = {"vocab_size": ROWS, "max_position_embeddings": 128, "pad_token_id": 1}
GPT2 = {"vocab_size": ROWS, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2}
RIGHT = {
    "llama": llama(),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "window": MistralConfig(**SIZES, sliding_window=8),
    "two kinds of layers": Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=8, sliding_window_pattern=2),
    "learned positions": GPT2Config(**GPT2),
    "experts": Qwen3MoeConfig(**SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    "head with a bias": PhiConfig(**SIZES),
    "head with a bias, no packing": GPTJConfig(**GPT2, rotary_dim=8),
    "head that scales": CohereConfig(**SIZES, logit_scale=0.0625),
    "head that divides": GraniteConfig(**SIZES, logits_scaling=8.0, residual_multiplier=0.5),
    "heads and attention with soft caps": Gemma2Config(
        **SIZES, head_dim=8, sliding_window=8, final_logit_softcapping=2.0, attn_logit_softcapping=1.0
    ),
    "soft cap of another name": RecurrentGemmaConfig(
        **{**SIZES, "num_key_value_heads": 1}, attention_window_size=8, logits_soft_cap=2.0
    ),
    "few positions": llama(max_position_embeddings=8),
    "two positions": llama(max_position_embeddings=2),
}


def scorer_of(config: PretrainedConfig, dtype: torch.dtype = torch.float32, **how: object) -> TorchScorer:
    return TorchScorer(random_model(config).to(dtype), **how)


def check(scorer: TorchScorer) -> None:
    check_numbers(scorer, scorer.model)


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("attention", "share"), [("auto", False), ("packed", True), ("padded", False)])
def test_a_model_whose_numbers_are_its_own_passes(name: str, dtype: torch.dtype, attention: str, share: bool) -> None:
    if share and not supports_packing(random_model(RIGHT[name])):
        attention, share = "auto", False  # they cannot
    check(scorer_of(RIGHT[name], dtype, attention=attention, share_prompt=share))


LONGROPE = Phi3Config(
    **SIZES, original_max_position_embeddings=64,
    rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
                     "original_max_position_embeddings": 64},
)  # fmt: skip


@pytest.mark.parametrize("attention", ["packed", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rope_that_follows_the_longest_of_a_batch_is_found(attention: str, dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=r"two forwards beside others at other positions .*longrope.* differ by"):
        check(scorer_of(LONGROPE, dtype, attention=attention))


def noisy(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    hidden, *others = arguments
    return (hidden + 0.05 * torch.randn_like(hidden), *others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_random_part_is_found(dtype: torch.dtype) -> None:
    scorer = scorer_of(llama(router_jitter_noise=0.1), dtype)
    scorer.model.model.norm.register_forward_pre_hook(noisy)
    with pytest.raises(ConfigError, match=r"two forwards of the same tokens .*'router_jitter_noise': 0\.1.* differ by"):
        check(scorer)


def test_a_forward_that_looks_at_its_company_is_found() -> None:
    scorer = scorer_of(llama(), attention="padded")
    scorer.model.model.norm.register_forward_pre_hook(lambda _, args: (args[0] - args[0].mean(0, keepdim=True),))
    with pytest.raises(ConfigError, match="a forward alone and one beside other responses differ by"):
        check(scorer)


def test_a_head_that_does_more_than_its_config_says_is_found() -> None:
    scorer = scorer_of(llama(), attention="padded")
    scorer.model.lm_head.register_forward_hook(lambda _, args, logits: torch.tanh(logits))
    with pytest.raises(ConfigError, match=r"the learner's forward and the model's own differ by .*cannot be trained"):
        check(scorer)


def test_attention_that_is_not_replaced_says_what_to_set() -> None:
    config = NemotronConfig(**SIZES)
    with pytest.raises(ConfigError, match=r"its forward fails: TypeError: .*set learner\.attention=padded"):
        check(scorer_of(config))
    check(scorer_of(config, attention="padded"))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_found(tmp_path: Path, broken: float) -> None:
    folder = write_model(tmp_path / "model")
    edit_weights(folder, lambda weights: weights | {"model.norm.weight": torch.full((32,), broken)})
    overrides = [f"model.path={folder}", "cluster.kind=inprocess", "learner.world_size=1", "sampling.max_tokens=9"]
    spec = make_spec(load_config(QUICKSTART, [*overrides, f"run.dir={tmp_path}"]))
    with pytest.raises(ConfigError, match="LlamaForCausalLM gives log-probs that are not finite"):
        build_inprocess(spec, str(folder))


def test_a_reference_is_looked_at_too(tmp_path: Path) -> None:
    folder, reference = write_model(tmp_path / "model"), write_model(tmp_path / "reference")
    edit_weights(reference, lambda weights: weights | {"model.norm.weight": torch.full((32,), torch.nan)})
    overrides = [f"model.path={folder}", "cluster.kind=inprocess", "learner.world_size=1", "sampling.max_tokens=9"]
    overrides += ["objective.reference_kl=0.1", f"objective.reference_path={reference}", f"run.dir={tmp_path}"]
    with pytest.raises(ConfigError, match="not finite"):
        build_inprocess(make_spec(load_config(QUICKSTART, overrides)), str(folder))


DROPOUT = {
    "starcoder2": Starcoder2Config(**SIZES, residual_dropout=0.3, embedding_dropout=0.3, attention_dropout=0.3),
    "opt": OPTConfig(**OTHERS, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, dropout=0.3,
                     word_embed_proj_dim=32, layerdrop=0.3, attention_dropout=0.3),
    "gptneo": GPTNeoConfig(**OTHERS, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global"], 2]],
                           resid_dropout=0.3, embed_dropout=0.3, attention_dropout=0.3),
    "gptneox": GPTNeoXConfig(**OTHERS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, hidden_dropout=0.3,
                             num_attention_heads=2, attention_dropout=0.3),
    "xglm": XGLMConfig(**OTHERS, d_model=32, ffn_dim=64, num_layers=2, attention_heads=2, dropout=0.3, layerdrop=0.3),
    "biogpt": BioGptConfig(**OTHERS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                           hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3, activation_dropout=0.3),
    "gpt2": GPT2Config(**GPT2, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3),
}  # fmt: skip


@pytest.mark.parametrize("name", DROPOUT)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_dropout_is_left_whatever_its_name(tmp_path: Path, name: str, checkpointing: bool) -> None:
    """Values and gradients of two forwards are equal, while checkpointing computes layers twice."""
    folder = write_model(tmp_path / "model", DROPOUT[name])
    model = load_policy(str(folder), "float32")
    if checkpointing:
        enable_checkpointing(model)
    scorer = TorchScorer(model)
    check(scorer)
    bundle = [(np.arange(3, 8), [(Segment.answer(np.arange(10, 30)),)])]
    one, other = (response_logprobs(scorer, bundle)[0] for _ in range(2))
    np.testing.assert_array_equal(one, other)
    calls = itertools.count()
    first = next(module for n, module in model.named_modules() if n.endswith((".layers.0", ".h.0")))
    inside = next(module for module in first.modules() if module is not first)
    inside.register_forward_pre_hook(lambda *_: (next(calls), None)[1])
    scorer.score(_layout(scorer, bundle), 1.0)[0].sum().backward()
    assert next(calls) == (2 if checkpointing else 1)


def _layout(scorer: TorchScorer, bundle: list[ScoringItem]) -> Layout:
    return lay_out(bundle, packed=scorer.packed, share_prompt=False)


def test_checkpointing_changes_no_gradient() -> None:
    plain = random_model(llama())
    checkpointed = copy.deepcopy(plain)
    enable_checkpointing(checkpointed)
    bundle = [(np.arange(3, 8), [(Segment.answer(np.arange(10, 30)),), (Segment.answer(np.arange(5, 9)),)])]
    gradients = []
    for model in (plain, checkpointed):
        scorer = TorchScorer(model)
        scorer.score(_layout(scorer, bundle), 1.0)[0].sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_a_model_without_checkpointing_says_so() -> None:
    model = random_model(llama())
    type(model).supports_gradient_checkpointing, before = False, type(model).supports_gradient_checkpointing
    try:
        with pytest.raises(ConfigError, match=r"learner\.gradient_checkpointing=true: .*expected false"):
            enable_checkpointing(model)
    finally:
        type(model).supports_gradient_checkpointing = before
