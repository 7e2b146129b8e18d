"""What is written can be read, by those who could read what it came from: transformers 4 and 5, vLLM."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GenerationConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from lpo_ray.config import load_config
from lpo_ray.policy.generation import savable
from lpo_ray.policy.loading import load_policy
from lpo_ray.policy.saving import make_readable, repairs, save_model
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.run.numbers import render
from lpo_ray.run.spec import make_spec
from tests.support.model_folders import SIZES, edit_json, llama, write_model
from tests.support.real_specs import QUICKSTART

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
KINDS: dict[str, PretrainedConfig] = {
    "theta": Qwen3Config(**SIZES, head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "llama3": llama(rope_parameters=LLAMA3),
    "yarn": llama(rope_parameters={"rope_type": "yarn", "rope_theta": 2e4, "factor": 2.0,
                                   "original_max_position_embeddings": 128}),
    "two kinds of layers": Gemma3TextConfig(
        **SIZES, head_dim=16, sliding_window=8, sliding_window_pattern=2,
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}},
    ),
    "a part of each head": PhiConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 3e4,
                                                               "partial_rotary_factor": 0.25}),
    "experts": Qwen3MoeConfig(**SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                              rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
}  # fmt: skip


def hub_style(folder: Path) -> Path:
    """As transformers 4 wrote it, and hubs have it."""
    write_model(folder, KINDS["theta"], {"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 3]})
    edit_json(folder / "config.json", rope_parameters=None, rope_theta=1e6, torch_dtype="bfloat16", dtype=None,
              transformers_version="4.51.0", attention_dropout=0.1, a_key_of_its_own=[1])  # fmt: skip
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast",
              additional_special_tokens=["<pad>"], extra_special_tokens=None, backend=None)  # fmt: skip
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<eos>"}))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }} \n")
    return folder


def saved(source: Path, target: Path, **how: object) -> Path:
    save_model(load_policy(str(source), "float32", **how), target)
    Tokenizer.load(str(source)).save(target)
    return target


def read(folder: Path, name: str = "config.json") -> dict:
    return json.loads((folder / name).read_text())


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(np.random.default_rng(0).integers(0, 100, (2, 90)))).logits


def test_config_and_tokenizer_of_the_source_are_kept(tmp_path: Path) -> None:
    source = hub_style(tmp_path / "source")
    out = saved(source, tmp_path / "out")
    assert read(out) == {**read(source), "torch_dtype": "float32", "dtype": "float32"}
    for name in ("tokenizer.json", "special_tokens_map.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert read(out, "tokenizer_config.json") == read(source, "tokenizer_config.json")
    assert torch.equal(logits(out), logits(source))


def test_a_generation_config_that_cannot_be_saved_is_repaired(tmp_path: Path) -> None:
    """Llama-2's has values of sampling without do_sample, which transformers refuses to write."""
    out = saved(hub_style(tmp_path / "source"), tmp_path / "out")
    written = read(out, "generation_config.json")
    assert written == {"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 3], "do_sample": True}
    GenerationConfig.from_pretrained(out).save_pretrained(tmp_path / "again")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"eos_token_id": 2}, {"eos_token_id": 2}),
        ({"do_sample": True, "top_k": 20, "repetition_penalty": 1.05}, None),
        ({"top_k": 20, "typical_p": 0.9}, {"top_k": 20, "typical_p": 0.9, "do_sample": True}),
        ({"eos_token_id": 2, "max_new_tokens": -1}, {"eos_token_id": 2}),
        ({"num_beams": 1, "num_return_sequences": 4}, {"num_beams": 1, "num_return_sequences": 4, "do_sample": True}),
    ],
)
def test_what_is_wrong_with_a_generation_config_goes_and_the_rest_stays(
    tmp_path: Path, values: dict[str, object], expected: dict[str, object] | None
) -> None:
    found = savable(values)
    assert found == (values if expected is None else expected)
    GenerationConfig(**found).save_pretrained(tmp_path)


def test_what_will_be_written_otherwise_is_said_before_the_first_step(tmp_path: Path) -> None:
    folder = hub_style(tmp_path / "model")
    spec = make_spec(load_config(QUICKSTART, [f"model.path={folder}", "sampling.max_tokens=20"]))
    (said,) = [line for line in render(spec).splitlines() if "generation_config.json" in line]
    assert said.endswith("has values that transformers does not save; what is written differs in do_sample")
    assert repairs(str(write_model(tmp_path / "fine", generation={"eos_token_id": 2}))) == []
    assert repairs("no/such-model") == []


def test_a_generation_config_that_cannot_be_read_does_not_end_a_run_at_its_first_checkpoint(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    (source / "generation_config.json").write_text("{broken")
    assert repairs(str(source))[0].endswith("cannot be read and is left out; what is written has the end tokens of "
                                            "config.json")  # fmt: skip
    out = saved(source, tmp_path / "out")
    assert read(out, "generation_config.json")["eos_token_id"] == 2


@pytest.mark.parametrize("name", KINDS)
def test_a_config_of_transformers_5_says_what_4_looks_for(tmp_path: Path, name: str) -> None:
    source = write_model(tmp_path / "source", KINDS[name])
    out = saved(source, tmp_path / "out")
    written, rope = read(out), KINDS[name].rope_parameters
    rope = rope.get("full_attention", rope)
    assert written["rope_theta"] == rope["rope_theta"]
    scaling = written.get("rope_scaling") or {"rope_type": "default"}
    assert {**scaling, "rope_theta": rope["rope_theta"]}.items() <= rope.items()
    assert AutoConfig.from_pretrained(out).rope_parameters == AutoConfig.from_pretrained(source).rope_parameters
    assert torch.equal(logits(out), logits(source))
    assert read(out, "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, out))
    assert after("3*4 = 12")["input_ids"] == before("3*4 = 12")["input_ids"]
    content = {file.name: file.read_bytes() for file in out.iterdir()}
    make_readable(out)
    assert content == {file.name: file.read_bytes() for file in out.iterdir()}


def test_special_tokens_in_a_list_are_named_as_both_know_them(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    edit_json(source / "tokenizer_config.json", extra_special_tokens=["<pad>", "<bos>"], backend="tokenizers")
    out = saved(source, tmp_path / "out")
    found = read(out, "tokenizer_config.json")
    assert found["additional_special_tokens"] == ["<pad>", "<bos>"]
    assert not found.keys() & {"extra_special_tokens", "backend", "is_local"}
    assert AutoTokenizer.from_pretrained(out).extra_special_tokens == ["<pad>", "<bos>"]


def test_without_its_source_what_is_held_is_written(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", KINDS["llama3"])
    model, tokenizer, expected = load_policy(str(source), "float32"), Tokenizer.load(str(source)), logits(source)
    shutil.rmtree(source)
    save_model(model, tmp_path / "out")
    tokenizer.save(tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), expected)
    assert read(tmp_path / "out")["rope_theta"] == 5e5
    assert len(Tokenizer.load(str(tmp_path / "out"))) == len(tokenizer)


def test_the_code_of_a_model_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    source = write_model(tmp_path / "source")
    edit_json(source / "config.json", model_type="own",
              auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"})  # fmt: skip
    (source / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    out = saved(source, tmp_path / "out", trust_remote_code=True)
    assert (out / "own.py").read_text() == (source / "own.py").read_text()
    assert type(load_policy(str(out), "float32", trust_remote_code=True)).__name__ == "OwnForCausalLM"


READER = """
import sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4."), transformers.__version__
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    ids = torch.load(folder + "/ids.pt")
    with torch.no_grad():
        torch.save(model(ids).logits, folder + "/read.pt")
    print(AutoTokenizer.from_pretrained(folder)("3*4 = 12")["input_ids"])
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_transformers_4_reads_what_5_wrote(tmp_path: Path) -> None:
    """In a process of its own, beside the same torch."""
    wanted = ["transformers==4.57.6", "tokenizers==0.22.1", "huggingface_hub==0.36.0"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "4"), *wanted]
    if subprocess.run(install, capture_output=True, timeout=600).returncode:
        pytest.skip("transformers 4 cannot be installed here")
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 100, (2, 90)))
    sources = {name: write_model(tmp_path / name, config) for name, config in KINDS.items()}
    sources["hub"] = hub_style(tmp_path / "hub")
    outs = {name: saved(source, tmp_path / f"{name} out") for name, source in sources.items()}
    for out in outs.values():
        torch.save(ids, out / "ids.pt")
    command = [sys.executable, "-c", READER, *map(str, outs.values())]
    reader = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={"PYTHONPATH": str(tmp_path / "4"), "PATH": ""}
    )
    assert reader.returncode == 0, reader.stderr
    expected = Tokenizer.load(str(sources["hub"])).encode("3*4 = 12").tolist()
    assert reader.stdout.splitlines() == [str(expected)] * len(outs)
    for name, out in outs.items():
        torch.testing.assert_close(torch.load(out / "read.pt"), logits(sources[name]), msg=name)
