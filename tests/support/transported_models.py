"""Small models on ranks and engines, and what an engine makes of the weights that it was sent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from actors.cluster import Cluster
from actors.learner.group import LearnerGroup
from actors.learner.worker import LearnerWorker
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.policy.weights_proof import largest_difference
from lpo_ray.records import Publication, Sampling
from tests.support.builders import make_prompt

VOCABULARY = 333
"""not a multiple of 64: engines pad it"""
GREEDY = Sampling(group_size=2, temperature=0.0, max_tokens=12, seed=0)
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.05,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
MODELS = {("qwen3_moe", False): (partial(Qwen3MoeConfig, **EXPERTS), Qwen3MoeForCausalLM)} | {
    (name, tied): (config, model)
    for (name, config, model) in (("qwen3", Qwen3Config, Qwen3ForCausalLM), ("llama", LlamaConfig, LlamaForCausalLM))
    for tied in (True, False)
}


@dataclass
class Case:
    """What was seen of one model, dtype and transport."""

    difference: float
    """largest, of log-probs to transformers"""
    greedy: bool
    versions: set[int]
    publication: Publication


def make_model(folder: Path, name: str, tied: bool, policy: Path) -> Path:
    torch.manual_seed(1)
    config, model = MODELS[name, tied]
    tokenizer = Tokenizer.load(str(policy))
    ids = {"eos_token_id": VOCABULARY - 1, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    model(config(**SIZES, **ids, tie_word_embeddings=tied, head_dim=32)).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def perturb(worker: LearnerWorker, seed: int) -> None:
    """A random update: the same full noise on every rank, of which each takes its shard."""
    rank, policy = torch.distributed.get_rank(), worker._policy
    for name, parameter in policy.model.named_parameters():
        generator = torch.Generator().manual_seed(seed * 1000 + len(name))
        noise = torch.randn(parameter.ds_tensor.numel() * policy.world_size, generator=generator) * 0.02
        part = noise[rank * parameter.ds_tensor.numel() :][: parameter.ds_tensor.numel()]
        parameter.ds_tensor.data.add_(part.view_as(parameter.ds_tensor).to(parameter.ds_tensor))


def rounding(name: str, dtype: str) -> float:
    """Largest difference of one log-prob, in nats; in bf16 rounding sends a token to another expert now and then."""
    return 1e-3 if dtype == "float32" else 0.3 if name == "qwen3_moe" else 2e-2


async def on_ranks(learner: LearnerGroup, function: object, *arguments: object) -> None:
    for reference in [rank.__ray_call__.remote(function, *arguments) for rank in learner.ranks]:
        await reference


async def reference(learner: LearnerGroup, folder: Path, dtype: str) -> torch.nn.Module:
    """Transformers' model of the learner's weights, in the engines' dtype."""
    folder.mkdir(parents=True)
    await learner.save(folder)
    return AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=getattr(torch, dtype)).eval()


async def look(cluster: Cluster, model: torch.nn.Module, publication: Publication) -> Case:
    """Greedy responses of the engine beside transformers' own, and the log-probs of both on them."""
    group = await cluster.rollout.sample(make_prompt(3, length=40, vocabulary=VOCABULARY), GREEDY, 0)
    start, worst, greedy = 40, 0.0, True
    for response in group.responses:
        sequence = torch.from_numpy(np.concatenate([group.prompt.token_ids, response.token_ids]))
        with torch.no_grad():
            logprobs = model(sequence[None]).logits[0, start - 1 : -1].float().log_softmax(-1)
        chosen = logprobs.gather(1, sequence[start:, None])[:, 0]
        # in bf16 two tokens may be equally likely up to rounding
        tolerance = 0.0 if model.dtype == torch.float32 else rounding(model.config.model_type, "bfloat16")
        greedy &= bool((chosen >= logprobs.max(-1).values - tolerance).all())
        served = await cluster.rollout.members[0].worker.handle.logprobs.remote([sequence.numpy()])
        worst = max(worst, largest_difference([chosen.numpy()], [served[0][start - 1 :]]))
    return Case(worst, greedy, {v for r in group.responses for v in r.versions.tolist()}, publication)
