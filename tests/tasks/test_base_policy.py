from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lpo_ray.tasks.base_policy import Recipe, cached_base_policy, character_tokenizer

SMALL = Recipe(steps=2, batch_size=4)


def test_the_policy_is_a_plain_hugging_face_folder(tiny_policy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 2e6
    assert model.config.max_position_embeddings == 2048
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    text = "Using 3 + 4 * (2)\nok ~"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("\u00e9")["input_ids"] == [tokenizer.unk_token_id]


def test_the_same_recipe_gives_the_same_bits(tmp_path: Path) -> None:
    folders = [cached_base_policy(tmp_path / name, SMALL) for name in ("a", "b")]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    other = cached_base_policy(tmp_path / "c", Recipe(seed=1, steps=2, batch_size=4))
    assert (other / "model.safetensors").read_bytes() != weights[0]


def test_a_cached_policy_is_not_built_again(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        cached_base_policy(tmp_path, SMALL, lambda step, steps, loss: calls.append(step))
    assert calls == [1, 2]


def test_an_interrupted_build_leaves_no_policy(tmp_path: Path) -> None:
    def interrupt(step: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_base_policy(tmp_path, SMALL, interrupt)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_building_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    cached_base_policy(tmp_path, SMALL)
    assert torch.equal(torch.rand(2), expected)


def test_every_printable_character_is_one_token() -> None:
    tokenizer = character_tokenizer()
    assert len(tokenizer) == 100
    assert len(tokenizer.encode("".join(chr(code) for code in range(32, 127)) + "\n")) == 96
