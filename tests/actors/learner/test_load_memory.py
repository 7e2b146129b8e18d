"""The memory that a rank needs to start, and to write the policy: its share and a piece, never the whole model."""

from __future__ import annotations

import filecmp
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from actors.learner.zero3 import PIECE_BYTES
from lpo_ray.policy.loading import load_policy
from lpo_ray.policy.pieces import PIECE_ELEMENTS
from lpo_ray.policy.saving import save_model
from lpo_ray.policy.tensor_file import DiskTensors
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


def written(rank: int, model: Path, out: Path, by_disk: bool) -> int:
    """Bytes of its own that a rank took at its height to write a frozen model's folder, on top of its share.
    ``by_disk``: gathered in a file; else in memory, as it was once.
    """
    from actors.learner.zero3 import Zero3Policy, Zero3Scorer, load_sharded

    class Frozen(Zero3Scorer):
        shapes, gather, gather_into, _named = (
            Zero3Policy.shapes, Zero3Policy.gather, Zero3Policy.gather_into, Zero3Policy._named
        )  # fmt: skip

    policy = Frozen(load_sharded(str(model), rank_settings(model, "bfloat16"), lambda: None))
    shapes, before, most = policy.shapes(), status("RssAnon"), [0]
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], status("RssAnon"))

    looking = threading.Thread(target=look)
    looking.start()
    weights: Any = None
    if rank == 0 and by_disk:
        weights = DiskTensors(out.with_suffix(".gathered"), shapes, torch.bfloat16)
    elif rank == 0:
        weights = SimpleNamespace(
            tensors={name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()},
            written=lambda names: None, close=lambda: None,
        )  # fmt: skip
    policy.gather(weights)
    if weights is not None:
        save_model(policy.model, out, weights.tensors)
        weights.close()
    done.set()
    looking.join()
    return most[0] - before


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("hidden", "layers", "vocabulary"),
    [pytest.param(1024, 24, 16384, marks=pytest.mark.slow), pytest.param(2048, 36, 151936, marks=pytest.mark.long)],
    ids=["0.36 B", "2.2 B"],
)
def test_the_policy_is_written_without_the_whole_model_in_memory(
    tmp_path: Path, hidden: int, layers: int, vocabulary: int, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters, _ = write_large(tmp_path / "model", made := config(hidden, layers, vocabulary))
    whole, alone = BYTES * parameters, BYTES * max(PIECE_BYTES // 4, made.vocab_size * made.hidden_size)
    peaks = on_ranks(2, written, tmp_path / "model", tmp_path / "now", True)
    before = on_ranks(2, written, tmp_path / "model", tmp_path / "before", False)
    with capsys.disabled():
        print({k: f"{v / MIB:,.0f} MiB" for k, v in {"whole": whole, "now": peaks[0], "before": before[0]}.items()})  # noqa: T201
    assert max(peaks) < 2 * alone + CONSTANT
    assert before[0] > 0.95 * whole
    names = sorted(path.name for path in (tmp_path / "before").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "now").iterdir())
    assert not filecmp.cmpfiles(tmp_path / "before", tmp_path / "now", names, shallow=False)[1:][0]
    assert not list(tmp_path.glob("*.gathered"))
