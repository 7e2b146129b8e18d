"""Folders of adapters: what PEFT, transformers and we write and read of each other, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lpo_ray.errors import ConfigError
from lpo_ray.policy.adapter_files import check_folder, read_settings, read_tensors, save_adapter
from lpo_ray.policy.loading import load_policy
from lpo_ray.policy.lora import AdapterSettings
from lpo_ray.policy.lora_layers import inject, merge, without_adapter
from tests.support.model_folders import llama, random_model

ADAPTER = AdapterSettings(3, 7, ("all-linear",), rslora=True)
IDS = torch.arange(1, 12)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    random_model(llama()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """An adapter that is not zero."""
    model = load_policy(str(base), "float32")
    tensors = {name: torch.randn_like(p) * 0.3 for name, p in inject(model, ADAPTER).items()}
    save_adapter(tmp_path / "adapter", ADAPTER, str(base), tensors)
    return tmp_path / "adapter"


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(IDS).logits


def ours(base: Path, adapter: AdapterSettings) -> PreTrainedModel:
    model = load_policy(str(base), "float32")
    inject(model, adapter)
    return model


def test_peft_and_transformers_read_what_is_written(base: Path, folder: Path) -> None:
    model = ours(base, replace(ADAPTER, path=str(folder)))
    expected, plain = logits(model), logits(AutoModelForCausalLM.from_pretrained(base))
    assert float((expected - plain).abs().max()) > 0.1
    for other in (
        AutoPeftModelForCausalLM.from_pretrained(folder),
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder),
        AutoModelForCausalLM.from_pretrained(folder),
    ):
        torch.testing.assert_close(logits(other), expected, rtol=1e-4, atol=1e-5)
    with without_adapter(model):
        assert torch.equal(logits(model), plain)
    merge(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert type(model.get_submodule("model.layers.0.self_attn.q_proj")) is torch.nn.Linear
    assert model.state_dict().keys() == load_policy(str(base), "float32").state_dict().keys()


def test_what_peft_writes_is_read(base: Path, tmp_path: Path) -> None:
    made = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=3, lora_alpha=7, target_modules=["v_proj", "q_proj"], use_rslora=True, task_type="CAUSAL_LM"),
    )
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    made.save_pretrained(tmp_path / "theirs")
    found, named = read_settings(str(tmp_path / "theirs"))
    assert (found.rank, found.alpha, found.targets, found.rslora) == (3, 7, ("q_proj", "v_proj"), True)
    assert named == str(base)
    check_folder(found)
    torch.testing.assert_close(logits(ours(base, found)), logits(made), rtol=1e-4, atol=1e-5)


def test_settings_that_are_not_the_folders_are_named(folder: Path) -> None:
    here = replace(ADAPTER, path=str(folder))
    check_folder(here)
    for key, value in (("rank", 4), ("alpha", 8), ("rslora", False), ("targets", ("q_proj",))):
        with pytest.raises(ConfigError, match=rf"model\.lora\.{key} is "):
            check_folder(replace(here, **{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("peft_type", "LOHA"), ("use_dora", True), ("bias", "all"), ("modules_to_save", ["lm_head"]),
     ("rank_pattern", {"q": 2}), ("init_lora_weights", "pissa"), ("target_modules", "model.*q_proj"), ("r", "3"),
     ("lora_alpha", 1.5)],
)  # fmt: skip
def test_another_kind_of_adapter_is_refused(folder: Path, key: str, value: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ConfigError, match="adapter"):
        read_settings(str(folder))


def test_tensors_that_are_lost_foreign_or_of_another_shape_are_named(base: Path, folder: Path) -> None:
    file, whole = folder / "adapter_model.safetensors", read_tensors(str(folder))
    first = next(iter(whole))
    for tensors, says in (
        ({name: tensor for name, tensor in whole.items() if name != first}, "1 missing"),
        (
            whole | {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": whole[first].clone()},
            "has no layer for",
        ),
        (whole | {first: whole[first][:2].clone()}, "of another shape"),
    ):
        save_file(tensors, file)
        with pytest.raises(ConfigError, match=says):
            ours(base, replace(ADAPTER, path=str(folder)))
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tensors(str(folder))


@pytest.mark.parametrize("targets", [("lm_head",), ("embed_tokens",), ("q_proj", "nothing"), ("nothing",)])
def test_targets_that_cannot_be_served_are_refused(base: Path, targets: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"model\.lora\.targets.*expected \[all-linear\] or names.*q_proj"):
        ours(base, replace(ADAPTER, targets=targets))


def test_equal_seeds_begin_equally(base: Path) -> None:
    a, b, c = (inject(load_policy(str(base), "float32"), replace(ADAPTER, seed=seed)) for seed in (1, 1, 2))
    first = next(iter(a))
    assert torch.equal(a[first], b[first]) and not torch.equal(a[first], c[first])
    assert not any(parameter.any() for name, parameter in a.items() if "lora_B" in name)


def test_a_file_has_the_tensors_under_the_names_of_the_wire(folder: Path) -> None:
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in load_file(
        folder / "adapter_model.safetensors"
    )
