"""The tiny base policy: a Qwen3-style character model and its short supervised warm start on a task's responses.

So that the whole system can be tried, and is tested, on a machine without a GPU and without a model hub. Every problem
of the warm start is from the training split. Deterministic by seed, cached by recipe, written all or nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import tokenizers
import torch
from filelock import FileLock
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lpo_ray.common.files import publish_folder
from lpo_ray.common.home import user, writable
from lpo_ray.errors import ConfigError
from lpo_ray.policy.saving import save_model
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.tasks.warm_starts import WARM_STARTS

CONTEXT_LENGTH = 2048
FORMAT = 1
"""raised when the same recipe starts to give another policy"""
Progress = Callable[[int, int, float], None]
"""step, steps, loss"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the weights."""

    seed: int = 0
    steps: int = 220
    batch_size: int = 128
    lr: float = 2e-3
    counts: tuple[int, ...] = (3,)
    task: str = "countdown"
    """row of WARM_STARTS"""


def cached_base_policy(cache_dir: Path, recipe: Recipe, on_progress: Progress | None = None) -> Path:
    """Return the folder of the recipe's policy in ``cache_dir``, built on first use. Processes that ask at once build
    it once.
    """
    values = {name: value for name, value in asdict(recipe).items() if (name, value) != ("task", "countdown")}
    key = blake2b(json.dumps([FORMAT, values]).encode(), digest_size=8).hexdigest()
    folder = cache_dir / f"base-{key}"
    if folder.exists():  # whole, as it was written all or nothing; the cache may be a read-only one
        return folder
    if not writable(cache_dir):
        raise ConfigError(
            f"the base policy's cache {cache_dir} cannot be written by {user()}; expected a folder of this user's: "
            "set LPO_RAY_CACHE, HOME or model.warmup.cache_dir"
        )
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(str(cache_dir / f"base-{key}.lock")):
        if not folder.exists():
            build_base_policy(folder, recipe, on_progress)
    return folder


def build_base_policy(folder: Path, recipe: Recipe, on_progress: Progress | None = None) -> None:
    """Build the policy and write it to ``folder`` in Hugging Face format; an interrupted build leaves no folder."""
    partial = folder.with_name(f".partial-{folder.name}-{os.getpid()}")
    try:
        tokenizer = character_tokenizer()
        model = train_base_policy(tokenizer, recipe, on_progress)
        save_model(model, partial)
        tokenizer.save(partial)
        (partial / "recipe.json").write_text(json.dumps(asdict(recipe)))
        publish_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def character_tokenizer() -> Tokenizer:
    """Make a tokenizer with one token for each printable ASCII character and newline; anything else is <unk>."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: number for number, token in enumerate(special + characters)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return Tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            unk_token="<unk>",
            model_max_length=CONTEXT_LENGTH,
            clean_up_tokenization_spaces=False,
        )
    )


def make_model(tokenizer: Tokenizer, seed: int) -> Qwen3ForCausalLM:
    """Make a model of 1.8 M parameters with random weights."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, do_sample=True
    )
    return model


def train_base_policy(tokenizer: Tokenizer, recipe: Recipe, on_progress: Progress | None = None) -> Qwen3ForCausalLM:
    """Train by supervised steps on fresh problems; the loss is on the solution and its end only."""
    model = make_model(tokenizer, recipe.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.0)
    for step in range(recipe.steps):
        first = step * recipe.batch_size
        token_ids, labels = _batch(tokenizer, recipe, range(first, first + recipe.batch_size))
        attention = (token_ids != tokenizer.pad_token_id).to(torch.long)
        loss = model(input_ids=token_ids, attention_mask=attention, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * min(1.0, (step + 1) / 50) * (0.1 + 0.9 * (1 - step / recipe.steps))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if on_progress is not None:
            on_progress(step + 1, recipe.steps, float(loss.detach()))
    return model.eval()


def _batch(tokenizer: Tokenizer, recipe: Recipe, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Encode a batch: [B, T] token ids, and labels that are -100 outside what is learned."""
    rows = []
    for index in indices:
        ids: list[int] = []
        learned: list[int] = []
        for piece in WARM_STARTS[recipe.task](recipe.seed, index, recipe.counts):
            tokens = [*tokenizer.encode(piece.text).tolist(), *[tokenizer.eos_token_id] * piece.said]
            ids += tokens
            learned += tokens if piece.learned else [-100] * len(tokens)
        rows.append((ids, learned))
    width = max(len(ids) for ids, _ in rows)
    token_ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for row, (ids, learned) in enumerate(rows):
        token_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, : len(ids)] = torch.tensor(learned)
    return token_ids, labels
