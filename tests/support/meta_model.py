"""The learner's forward and backward of a large model on the meta device: shapes, dtypes and bytes, with no memory.

It takes the branches that a GPU takes. ``python -m tests.support.meta_model NAME [--keep]`` prints JSON; ``--keep``:
without gradient checkpointing.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from lpo_ray.policy.layout import lay_out
from lpo_ray.policy.loading import enable_checkpointing
from lpo_ray.policy.scoring import ScoringModel
from lpo_ray.records import Segment
from lpo_ray.tools.plan.architecture import describe
from lpo_ray.tools.plan.memory import BYTES, RankSettings, head_memory, step_heights

COMMON: dict[str, Any] = {"vocab_size": 151936, "head_dim": 128, "tie_word_embeddings": False}
DENSE = {
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
           "num_key_value_heads": 8},
    "32B": {"hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64, "num_attention_heads": 64,
            "num_key_value_heads": 8},
}  # fmt: skip
MIXTURE = {"hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128,
           "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_attention_heads": 32,
           "num_key_value_heads": 4}  # fmt: skip
RESPONSES, PROMPT, RESPONSE = 4, 512, 3584


def build(name: str) -> PreTrainedModel:
    """A Qwen3 of that size, in bfloat16."""
    with torch.device("meta"):
        if name == "30B-A3B":
            model: Any = Qwen3MoeForCausalLM(Qwen3MoeConfig(**MIXTURE, **COMMON))
        else:
            model = Qwen3ForCausalLM(Qwen3Config(**DENSE[name], **COMMON))
    return model.to(torch.bfloat16)


def main(name: str, *, keep: bool) -> dict[str, Any]:
    """Score 16,384 tokens and go back. Returns bytes that the forward kept, and what plan counts."""
    answer = Segment.answer(np.zeros(RESPONSE, dtype=np.int64))
    responses = [(np.zeros(PROMPT, dtype=np.int64), [(answer,)])] * RESPONSES
    layout = lay_out(responses, packed=True, share_prompt=False)
    model = build(name)
    if not keep:
        enable_checkpointing(model)
    scoring = ScoringModel(model, "packed", share_prompt=False)
    seen: set[int] = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept += storage.nbytes()
        alive.append(tensor)  # so that no other storage has its address
        return tensor

    alive: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logprobs, _ = scoring(layout, 1.0)
    logprobs.sum().backward()
    size, scored = BYTES["bfloat16"] * model.config.hidden_size, len(logprobs)
    found: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "without_gradient": [n for n, parameter in model.named_parameters() if parameter.grad is None],
        "logprobs": [scored, str(logprobs.dtype)],
        "tokens": layout.token_ids.numel(),
        "kept": kept,
        "hidden": size,
        "layers": model.config.num_hidden_layers,
    }
    if name in DENSE:
        rank = RankSettings(
            1, "bfloat16", found["tokens"], scored, not keep, False, False, False, 10**9, 2**26, on_gpu=True
        )  # fmt: skip
        architecture = describe(model, name, "")
        head = head_memory(
            architecture, "bfloat16", scored, on_gpu=True
        )  # of which these are the rows of scored tokens
        found["planned"] = step_heights(architecture, rank)[0] - head + scored * size
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], keep="--keep" in sys.argv)))
