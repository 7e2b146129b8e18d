"""The memory that a rank needs to start: its share and a piece of the files, never the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from lpo_ray.policy.loading import load_policy
from lpo_ray.policy.pieces import PIECE_ELEMENTS
from tests.support.zero3_ranks import on_ranks, rank_settings

BYTES, MIB = 2, 2**20
CONSTANT = 96 * MIB
"""of modules, collectives' buffers and what the allocator keeps"""


def config(hidden: int, layers: int, vocabulary: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 128, num_key_value_heads=hidden // 256, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip


def write_large(folder: Path, made: Qwen3Config) -> tuple[int, int]:
    """A random model in bfloat16, written a layer at a time. Returns its parameters, and those of its largest layer."""
    folder.mkdir()
    with torch.device("meta"):
        model = Qwen3ForCausalLM(made)
    model.config.save_pretrained(folder)
    files: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in model.named_parameters():
        place = name.split(".")[2] if "layers." in name else "rest"
        files.setdefault(f"{place}.safetensors", {})[name] = parameter.shape
    for file, shapes in files.items():
        tensors = {
            name: torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.05, 0.05) for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, shapes in files.items() for name in shapes}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    layers = [
        sum(shape.numel() for shape in shapes.values()) for name, shapes in files.items() if name != "rest.safetensors"
    ]
    return sum(parameter.numel() for parameter in model.parameters()), max(layers)


def status(name: str) -> int:
    """Bytes, by the kernel's own account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def peak(rank: int, model: Path, shared: bool) -> int:
    """Bytes that a rank of a frozen model took at its height, on top of what was there before it was loaded.
    ``shared``: in pieces; else whole, for DeepSpeed to shard, as it was once.
    """
    from actors.learner.zero3 import ShardedModel, Zero3Scorer, load_sharded

    Path("/proc/self/clear_refs").write_text("5")  # the mark of the highest begins anew
    before = status("VmRSS")
    if shared:
        sharded = load_sharded(str(model), rank_settings(model, "bfloat16"), lambda: None)
    else:
        whole = load_policy(str(model), "bfloat16")
        sharded = ShardedModel(whole, {}, "packed", share_prompt=False, count=lambda: None)
    assert Zero3Scorer(sharded).packed
    return status("VmHWM") - before


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("hidden", "layers", "vocabulary"),
    [pytest.param(1024, 24, 16384, marks=pytest.mark.slow), pytest.param(2048, 36, 151936, marks=pytest.mark.long)],
    ids=["0.36 B", "2.2 B"],
)
def test_a_rank_never_holds_the_whole_model(
    tmp_path: Path, hidden: int, layers: int, vocabulary: int, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters, layer = write_large(tmp_path / "model", made := config(hidden, layers, vocabulary))
    share, whole = BYTES * parameters // 2, BYTES * parameters
    alone = BYTES * max(PIECE_ELEMENTS, made.vocab_size * made.hidden_size)  # a piece: several layers, or one tensor
    peaks = on_ranks(2, peak, tmp_path / "model", True)
    before = max(on_ranks(2, peak, tmp_path / "model", False))
    with capsys.disabled():
        shown = {"whole": whole, "share": share, "layer": BYTES * layer, "piece": alone, "in pieces": max(peaks)}
        print({name: f"{size / MIB:,.0f} MiB" for name, size in (shown | {"before": before}).items()})  # noqa: T201
    assert max(peaks) < share + alone + CONSTANT
    assert before > 0.95 * whole
