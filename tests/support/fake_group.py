"""One rank of many in one process, over torch's fake process group: what a micro-batch sends, and in what dtype.

``python -m tests.support.fake_group WORLD_SIZE [large]`` prints JSON. ``large``: a model that has several times the
parameters that may be whole at once.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

COLLECTIVES = (
    "all_gather_into_tensor", "reduce_scatter_tensor", "all_gather_coalesced", "all_reduce", "barrier", "all_gather",
    "reduce_scatter", "broadcast",
)  # fmt: skip


def counted(backend: Any, count: collections.Counter[str], sent: collections.Counter[str]) -> None:
    """Count DeepSpeed's collectives, and their bytes: the larger of what goes in and what comes out."""
    import torch

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*values: Any, **named: Any) -> Any:
            tensors = [value for value in (*values, *named.values()) if torch.is_tensor(value)]
            count[name] += 1
            sent[name] += max((tensor.numel() * tensor.element_size() for tensor in tensors), default=0)
            return call(*values, **named)

        return counting

    for name in COLLECTIVES:
        if (call := getattr(backend, name, None)) is not None:
            setattr(backend, name, wrapped(name, call))


def main(world_size: int, *, large: bool) -> dict[str, Any]:
    """Take one step of micro-batches with one, seven and no responses. Returns what each sent."""
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    os.environ.update({name: str(value) for name, value in names.items()} | {"DS_ACCELERATOR": "cpu"})
    import torch
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.set_num_threads(1)
    torch.distributed.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    import deepspeed
    from transformers import Qwen3Config, Qwen3ForCausalLM

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="fake", auto_mpi_discovery=False, verbose=False)
    from deepspeed.comm import comm

    from actors.learner.zero3 import ShardedModel, Zero3Policy
    from lpo_ray.learner.settings import OptimiserSettings
    from lpo_ray.policy.scoring import score_bundles
    from lpo_ray.records import Segment

    config = Qwen3Config(
        vocab_size=1024, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    size = sum(parameter.numel() for parameter in model.parameters())
    count, sent = collections.Counter[str](), collections.Counter[str]()
    counted(comm.cdb, count, sent)
    # As on GPUs, but for small parameters that stay whole there: here they would be most of the model.
    zero = {"stage3_param_persistence_threshold": 0}
    if large:
        zero |= {"stage3_max_live_parameters": size // 4, "stage3_max_reuse_distance": 0,
                 "stage3_prefetch_bucket_size": size // 8}  # fmt: skip
    options = {"zero_optimization": zero}
    sharded = ShardedModel(model, options, "auto", share_prompt=False, count=lambda: None, on_gpu=True)
    settings = OptimiserSettings((0.9, 0.999), 0.1, 1.0)
    policy = Zero3Policy(sharded, settings, gradient_checkpointing=True)
    rng, found = np.random.default_rng(0), []
    for responses in (1, 1, 7, 0):  # the first records the order in which parameters are used
        bundles = [(rng.integers(0, 1024, 8), [(Segment.answer(rng.integers(0, 1024, 16)),)]) for _ in range(responses)]
        count.clear()
        sent.clear()
        scores = score_bundles(policy, bundles, 1.0)
        policy.backward(scores.logprobs.nan_to_num().sum() * 0)
        found.append({"calls": dict(count), "bytes": dict(sent)})
    engine: Any = policy.engine
    return {
        "parameters": size,
        "micro_batches": found,
        "gradient_dtype": str(engine.optimizer.gradient_accumulation_dtype),
        "communication_dtype": str(engine.communication_data_type),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]), large="large" in sys.argv)))
