"""What is loaded is one whole language model: a folder that is not is refused by name, from its headers and at load."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma2Config,
    Gemma3Config,
    GPT2Config,
    Phi3Config,
    Qwen3Config,
    Qwen3MoeConfig,
    T5Config,
)

from lpo_ray.config import load_config
from lpo_ray.errors import ConfigError
from lpo_ray.policy import pieces
from lpo_ray.policy.loading import check_model, load_policy
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.run.spec import make_spec
from tests.support.model_folders import ROWS, SIZES, edit_json, edit_weights, llama, without, write_model
from tests.support.real_specs import QUICKSTART

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip


def dry(folder: Path, to_train: bool = True) -> None:
    check_model(str(folder), 99, to_train=to_train)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_ELEMENTS", 1500)


def load(folder: Path) -> None:
    """Whole, and a piece at a time: both refuse the same, and have the same weights in the end."""
    try:
        whole = load_policy(str(folder), "float32")
    except ConfigError as error:
        with pytest.raises(ConfigError) as again:
            load_policy(str(folder), "float32", take=lambda parameters: None)
        assert str(again.value) == str(error)
        raise
    shares = Shares()
    shared = load_policy(str(folder), "float32", take=shares.take)
    named = dict(shared.named_parameters())
    assert list(named) == [name for name, _ in whole.named_parameters()]
    for name, tensor in whole.named_parameters():
        assert not named[name].numel(), name
        assert torch.equal(shares.kept[id(named[name])], tensor), name
    largest = max(tensor.numel() for tensor in whole.parameters())
    assert shares.most <= max(largest, pieces.PIECE_ELEMENTS)
    for (name, left), (other, right) in zip(whole.named_buffers(), shared.named_buffers(), strict=True):
        assert name == other and torch.equal(left, right)


class Shares:
    """Takes each parameter away, as a rank of ZeRO-3 does but for its share."""

    def __init__(self) -> None:
        self.kept: dict[int, torch.Tensor] = {}
        self.most = 0
        """elements of the largest piece"""

    def take(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.most = max(self.most, sum(parameter.numel() for parameter in parameters))
        for parameter in parameters:
            assert id(parameter) not in self.kept
            self.kept[id(parameter)] = parameter.data
            parameter.data = torch.empty(0)


WHOLE = {
    "llama": llama(),
    "llama, tied": llama(tie_word_embeddings=True),
    "qwen3, tied": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
    "gpt2, whose masks were saved": GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=ROWS),
    "a mixture, whose experts are fused in memory": Qwen3MoeConfig(
        **SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    "RoPE that is scaled for good": llama(
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 128}
    ),
    "longrope within what it was trained for": Phi3Config(
        **SIZES, original_max_position_embeddings=256,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
                         "long_factor": [4.0] * 4, "original_max_position_embeddings": 256},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("how", [{}, {"max_shard_size": "40KB"}], ids=["one file", "shards"])
def test_a_whole_model_is_taken(tmp_path: Path, name: str, how: dict[str, str]) -> None:
    folder = write_model(tmp_path / "model", WHOLE[name], **how)
    if name.startswith("gpt2") and not how:
        mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)}
        edit_weights(folder, lambda weights: weights | mask)
    assert (folder / "model.safetensors.index.json").exists() == bool(how)
    dry(folder)
    load(folder)


def test_old_checkpoints_have_their_rope_frequencies_and_a_tied_head_twice(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", llama(tie_word_embeddings=True))
    old = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(2)}
    edit_weights(folder, lambda w: w | old | {"lm_head.weight": w["model.embed_tokens.weight"].clone()})
    dry(folder)
    load(folder)


def test_the_body_of_a_tied_model_is_whole_without_the_prefix_of_its_names(tmp_path: Path) -> None:
    """As GPT-2 is on the hub."""
    folder = write_model(tmp_path / "model", WHOLE["gpt2, whose masks were saved"])
    edit_weights(folder, lambda weights: {name.removeprefix("transformer."): w for name, w in weights.items()})
    dry(folder)
    load(folder)


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"policy.{name}": tensor for name, tensor in weights.items()}


def narrower(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights | {"model.embed_tokens.weight": weights["model.embed_tokens.weight"][:100].clone()}


def with_value_head(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights | {"score.weight": torch.zeros(1, 32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("lm_head"), r"has other weights than a LlamaForCausalLM needs: 1 missing, .* random numbers: lm_head"),
        (without("layers.1.mlp"), r"3 missing, .*: model\.layers\.1\.mlp\.down_proj\.weight, "),
        (renamed, r"21 missing, .*: lm_head\.weight, .*, \.\.\.; 21 that it has not, .*: policy\.lm_head\.weight, "),
        (narrower, r"1 of another shape, .*: model\.embed_tokens\.weight \[100, 32\] instead of \[104, 32\]"),
        (with_value_head, r"1 that it has not, which would be left out: score\.weight"),
    ],
)
def test_weights_that_are_not_the_models_are_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str
) -> None:
    folder = write_model(tmp_path / "model")
    edit_weights(folder, change)
    for check in (dry, load):
        with pytest.raises(ConfigError, match=message):
            check(folder)


def test_experts_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", WHOLE["a mixture, whose experts are fused in memory"])
    edit_weights(folder, without("layers.1.mlp.experts.3"))
    for check in (dry, load):
        with pytest.raises(ConfigError, match=r"model\.layers\.1\.mlp\.experts"):
            check(folder)


def test_a_pickled_model_has_no_header_and_is_refused_at_load(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    dry(folder)
    with pytest.raises(ConfigError, match=r"1 missing, .*: lm_head\.weight"):
        load(folder)


class Runs:
    """A pickle that calls a function when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("was-run",)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({"lm_head.weight": Runs()}, path),
        lambda path: torch.save({"lm_head.weight": Runs()}, path, _use_new_zipfile_serialization=False),
        lambda path: path.write_bytes(pickle.dumps(Runs())),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no pickle"),
        lambda path: (torch.save({"lm_head.weight": torch.zeros(9)}, path), truncated(path)),
    ],
)
def test_a_pickle_that_is_not_tensors_is_one_line(
    write: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    write(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="whose weights ") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "was-run").exists()


def test_a_tied_head_that_is_another_one_is_refused(tmp_path: Path) -> None:
    """transformers leaves them apart then, but only the embedding would be published."""
    folder = write_model(tmp_path / "model", llama(tie_word_embeddings=True))
    edit_weights(folder, lambda w: w | {"lm_head.weight": torch.randn(ROWS, 32)})
    with pytest.raises(ConfigError, match="tie_word_embeddings=true in its config, but its files have an output head"):
        load(folder)


def test_files_that_are_not_there_or_cut_short_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", max_shard_size="40KB")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        ConfigError, match=r"lacks 1 of the 3 files that model\.safetensors\.index\.json names: model-0"
    ):
        dry(folder)
    folder = write_model(tmp_path / "cut")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    for check in (dry, load):
        with pytest.raises(ConfigError, match=r"cut"):
            check(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no weights; expected model\.safetensors"):
        dry(folder)


def adapter(folder: Path) -> None:
    values = {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen3-0.6B", "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)}, folder / "adapter_model.safetensors")


def test_an_adapter_is_refused_beside_a_model_and_instead_of_one(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    adapter(folder)
    alone = tmp_path / "adapter"
    alone.mkdir()
    adapter(alone)
    for check in (dry, load, lambda folder: dry(folder, to_train=False)):
        with pytest.raises(ConfigError, match=r"has adapter_config\.json beside its weights.*merge_and_unload"):
            check(folder)
        with pytest.raises(ConfigError, match=r"is an adapter of 'Qwen/Qwen3-0\.6B' without the model itself"):
            check(alone)
    with pytest.raises(ConfigError, match=r"is an adapter of 'Qwen/Qwen3-0\.6B' without the model itself"):
        make_spec(load_config(QUICKSTART, [f"model.path={alone}"]))


REFUSED = {
    "awq": (llama(quantization_config={"quant_method": "awq", "bits": 4}), r"are quantised \(quantization_config: awq"),
    "gptq": (llama(quantization_config={"quant_method": "gptq", "bits": 4}), r"are quantised .*: gptq\)"),
    "fp8": (llama(quantization_config={"quant_method": "fp8"}), r"are quantised .*: fp8\)"),
    "bitsandbytes": (
        llama(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}), "are quantised"
    ),
    "pictures too": (
        Gemma3Config(text_config={**SIZES, "head_dim": 16}, vision_config=VISION),
        r"is a gemma3 of several models \(text_config, vision_config\); expected a language model alone",
    ),
    "dynamic": (
        llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "has rope_type=dynamic, whose frequencies follow the longest sequence of a batch",
    ),
    "longrope": (
        Phi3Config(
            **SIZES, original_max_position_embeddings=64,
            rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
                             "long_factor": [4.0] * 4, "original_max_position_embeddings": 64},
        ),
        "has rope_type=longrope, whose frequencies",
    ),
    "an encoder": (T5Config(vocab_size=ROWS, d_model=32), "t5, which has an encoder; expected a decoder alone"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_is_not_trained_here_is_refused_by_its_config(tmp_path: Path, name: str) -> None:
    config, message = REFUSED[name]
    folder = write_model(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    for check in (dry, load):
        with pytest.raises(ConfigError, match=message):
            check(folder)
    overrides = [f"model.path={folder}", f"run.dir={tmp_path}/runs", "sampling.max_tokens=20", "rollout.dtype=bfloat16"]
    inprocess = load_config(QUICKSTART, [*overrides, "cluster.kind=inprocess", "learner.world_size=1"])
    if name == "an encoder":
        with pytest.raises(ConfigError, match=message):
            dry(folder, to_train=False)
        return
    dry(folder, to_train=False)
    make_spec(load_config(QUICKSTART, overrides), for_training=False)  # vLLM serves them to `lpo-ray evaluate`
    with pytest.raises(ConfigError, match=message):  # transformers here does not
        make_spec(inprocess, for_training=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_attention_heads": "many"}, "could not be loaded"),
        ({"vocab_size": None}, "embed"),
        ({"model_type": "x"}, "x"),
    ],
)
def test_a_damaged_config_is_an_error_of_one_line(tmp_path: Path, values: dict[str, object], message: str) -> None:
    folder = write_model(tmp_path / "model")
    edit_json(folder / "config.json", **values)
    with pytest.raises(ConfigError, match=message) as refused:
        dry(folder)
    assert "\n" not in str(refused.value)


def test_tokens_without_a_row_of_the_embedding_are_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", llama(vocab_size=100))
    overrides = [f"model.path={folder}", f"run.dir={tmp_path / 'runs'}", "sampling.max_tokens=20"]
    make_spec(load_config(QUICKSTART, overrides))
    tokenizer = Tokenizer.load(str(folder))._tokenizer
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="a tokenizer with ids up to 100, but 100 rows of its embedding"):
        make_spec(load_config(QUICKSTART, overrides))
    with pytest.raises(ConfigError, match="ids up to 100"):
        make_spec(load_config(QUICKSTART, overrides), for_training=False)


@pytest.mark.parametrize("content", ["[1]", '{"early_stopping": "now"}'])
def test_a_generation_config_that_transformers_does_not_take_is_refused(tmp_path: Path, content: str) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "generation_config.json").write_text(content)
    for check in (dry, load):
        with pytest.raises(ConfigError, match=r"model"):
            check(folder)
    with pytest.raises(ConfigError, match=r"has a generation_config\.json that transformers does not take: "):
        dry(folder)


def test_the_reference_is_whole_and_knows_every_token_and_position(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    short = write_model(tmp_path / "short", llama(max_position_embeddings=128))
    narrow = write_model(tmp_path / "narrow", llama(vocab_size=50))
    headless = write_model(tmp_path / "headless")
    edit_weights(headless, without("lm_head"))
    for reference, message in (
        (short, "a model of 128 positions; expected 256 at least"),
        (narrow, "50 rows of its embedding"),
        (headless, "1 missing"),
    ):
        overrides = [f"model.path={model}", "objective.reference_kl=0.1", f"objective.reference_path={reference}"]
        with pytest.raises(ConfigError, match=message):
            make_spec(load_config(QUICKSTART, [*overrides, "sampling.max_tokens=20"]))


def test_a_missing_weight_is_refused_without_reading_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")
    shutil.copytree(folder, tmp_path / "whole")
    edit_weights(folder, without("lm_head"))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    with pytest.raises(ConfigError, match="1 missing"):
        dry(folder)
    dry(tmp_path / "whole")


def test_attention_with_soft_caps_is_computed_with_them(tmp_path: Path) -> None:
    """torch's kernel would leave them out, without a word."""
    config = Gemma2Config(**SIZES, head_dim=8, attn_logit_softcapping=1.0)
    model = load_policy(str(write_model(tmp_path / "model", config)), "float32")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        found = model(ids).logits
        model.set_attn_implementation("sdpa")
        assert float((model(ids).logits - found).abs().max()) > 1e-2
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(ids).logits, found)


def test_dropout_of_any_name_is_zero(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", llama(attention_dropout=0.1))
    edit_json(folder / "config.json", strange_dropout_rate=0.3, layerdrop=0.2, drop_last=True)
    found = load_policy(str(folder), "float32").config
    assert (found.attention_dropout, found.strange_dropout_rate, found.layerdrop, found.drop_last) == (0, 0, 0, True)
