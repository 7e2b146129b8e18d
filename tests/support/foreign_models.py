"""Small policies for programs whose prompts are long and in any characters."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.chat_tokenizers import QWEN3, byte_tokenizer

LONGEST = 32768


def long_policy(folder: Path) -> Path:
    """Make a policy of random weights with a chat template: a token is a byte, and there is room for many."""
    tokenizer = byte_tokenizer(QWEN3, eos="<|im_end|>")
    tokenizer.save(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=LONGEST, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
