"""How far engine and learner are apart with equal weights, and with one tensor in a wrong layout; for the limits of
``lpo_ray/policy/proof_limits.py``. One vLLM engine in this process, one transformers model.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/proof.py OUT.json [--models quickstart,smollm2,qwen3,...]
        [--dtype bfloat16] [--seeds 2]

Each model has a process of its own. "qwen3", "mixture" and "small mixture" have three layers of random weights, of
deviation 0.15, 0.15 and 0.05, the latter two 16 experts. What OUT.json has of other models stays.
"Good" versions are the model's weights with noise on top (a share of each tensor's deviation), published to the engine.
"Spoiled" is what a loader does to one tensor, all its values in the wrong place; three layers are tried. Figures are
typical differences in units of the baseline, divided by the growth of surprise, as the limit is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1"}

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from vllm import LLM, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.inputs import TokensPrompt

import actors.rollout.vllm_extension  # noqa: F401 - registers the receivers
from lpo_ray.common.home import default_cache_dir
from lpo_ray.learner.torch_learner import TorchScorer
from lpo_ray.policy.layout import lay_out
from lpo_ray.policy.loading import load_policy
from lpo_ray.policy.proof_limits import LEAST_SURPRISE, TYPICAL_FACTOR
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.policy.weights_proof import Agreement, as_bundles, compare
from lpo_ray.records import IntArray
from lpo_ray.tasks.base_policy import Recipe, cached_base_policy
from tests.benchmarks.smollm2 import smollm2
from tests.support.transported_models import SIZES

NOISE = (0.003, 0.01, 0.03, 0.1, 0.3)
TEXT = "Using the numbers {0}, {1} and {2}, make an equation that equals {3}. We try sums: {0} + {1} is not {3} yet.\n"
Weights = Mapping[str, Tensor]
RANDOM = {"qwen3": (0, 0.15), "mixture": (16, 0.15), "small mixture": (16, 0.05)}
"""name -> experts of a layer, and deviation of the weights"""
MODELS = ("quickstart", "smollm2", *RANDOM)


class Pair:
    """An engine and a learner of one model."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.model = load_policy(str(path), dtype)
        self._scorer = TorchScorer(self.model)
        text = "".join(TEXT.format(n, 2 * n + 1, 3 * n - 1, 5 * n + 2) for n in range(2, 40))
        self.tokens: IntArray = Tokenizer.load(str(path)).encode(text)[: min(240, self.model.config.vocab_size)]
        self._engine = LLM(
            str(path), dtype=dtype, max_model_len=256, max_num_seqs=8, enforce_eager=True, block_size=32,
            worker_extension_cls="actors.rollout.vllm_extension.WorkerExtension", kv_cache_memory_bytes=200 << 20,
            weight_transfer_config=WeightTransferConfig(backend="shared_memory"), enable_chunked_prefill=False,
            max_num_batched_tokens=8192, logprobs_mode="processed_logprobs",
        )  # fmt: skip

    def publish(self, weights: Weights) -> None:
        """Load ``weights`` into the engine, as a receiver does."""

        def load(worker: object) -> None:
            receiver = worker.weight_transfer_engine
            receiver.start_weight_update()
            receiver.model.load_weights(iter(weights.items()))
            receiver.finish_weight_update()

        self._engine.collective_rpc(load)

    def agreement(self) -> Agreement:
        """Compare both on the text."""
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        (output,) = self._engine.generate([TokensPrompt(prompt_token_ids=self.tokens.tolist())], params, use_tqdm=False)
        rows = zip(output.prompt_logprobs[1:], self.tokens[1:], strict=True)
        served = np.asarray([row[int(token)].logprob for row, token in rows], dtype=np.float32)
        with torch.no_grad():
            layout = lay_out(as_bundles([self.tokens]), packed=self._scorer.packed, share_prompt=False)
            expected = self._scorer.score(layout, 1.0)[0].float().numpy()
        return compare([expected], [served])

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.named_parameters()}


def spoiled(weights: Weights, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """One tensor in a wrong layout at a time."""
    config = model.config
    layers = {0, config.num_hidden_layers // 2, config.num_hidden_layers - 1}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for name, tensor in weights.items():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        if numbers and numbers[0] not in layers:
            continue
        if tensor.ndim == 1:
            yield f"{name}: ones", torch.ones_like(tensor)
            yield f"{name}: moved by one", tensor.roll(1, 0)
        elif any(part in name for part in ("q_proj", "k_proj", "v_proj")):
            halves = tensor.view(-1, 2, head // 2, tensor.shape[1])
            yield f"{name}: moved by a head", tensor.roll(head, 0)
            yield f"{name}: halves interleaved", halves.transpose(1, 2).reshape(tensor.shape)
        elif "o_proj" in name:
            yield f"{name}: moved by a head", tensor.roll(head, 1)
        else:  # router, experts, feed-forward, embedding, head
            yield f"{name}: moved by one", tensor.roll(1, 0)
        if tensor.ndim == 3:
            one = tensor.clone()
            one[0] = tensor[0].roll(1, 0)
            yield f"{name}: rows of one expert moved by one", one


def relative(found: Agreement, base: Agreement) -> float:
    return found.typical / base.typical / max(1.0, found.surprise / max(base.surprise, LEAST_SURPRISE))


def measure(path: Path, dtype: str, seeds: int) -> dict[str, object]:
    pair = Pair(path, dtype)
    base, start = pair.agreement(), pair.weights()
    wrong: dict[str, float] = {}
    for name, tensor in spoiled(start, pair.model):
        where = name.partition(":")[0]
        if not torch.equal(tensor, start[where]):
            pair.publish({**start, where: tensor.contiguous()})
            wrong[name] = round(relative(pair.agreement(), base), 3)
    good: dict[str, list[float]] = {str(noise): [] for noise in NOISE}
    for seed in range(seeds):
        for noise in NOISE:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for name, parameter in pair.model.named_parameters():
                    mean = start[name].float()
                    added = torch.randn(mean.shape, generator=generator) * noise * mean.std().clamp(min=1e-3)
                    parameter.copy_(mean + added)
            pair.publish(pair.weights())
            good[str(noise)].append(round(relative(pair.agreement(), base), 3))
    return {"dtype": dtype, "tokens": len(pair.tokens), "baseline": asdict(base), "good": good,
            "spoiled": dict(sorted(wrong.items(), key=lambda item: item[1]))}  # fmt: skip


def folder_of(model: str, scratch: Path) -> Path:
    """Return the folder of a model of MODELS."""
    cache = default_cache_dir()
    if model == "smollm2":
        return smollm2(cache)
    policy = cached_base_policy(cache, Recipe())
    if model not in RANDOM:
        return policy
    experts, deviation = RANDOM[model]
    tokenizer = Tokenizer.load(str(policy))
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    sizes = SIZES | {"initializer_range": deviation, "head_dim": 32, "tie_word_embeddings": False}
    torch.manual_seed(1)
    if experts:
        mixture = {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
        made: PreTrainedModel = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **ids, **mixture))
    else:
        made = Qwen3ForCausalLM(Qwen3Config(**sizes, **ids))
    made.save_pretrained(scratch)
    tokenizer.save(scratch)
    return scratch


def summary(found: Mapping[str, dict]) -> str:
    """Write a line for each model, as the results page has them."""
    lines = []
    for model, row in found.items():
        good = {float(noise): max(values) for noise, values in row["good"].items()}
        below = {name: value for name, value in row["spoiled"].items() if value < TYPICAL_FACTOR}
        missed = ", ".join(f"{name} {value:.2f}" for name, value in below.items())
        lines.append(
            f"{model}: baseline {row['baseline']['typical']:.4f} ({row['baseline']['largest']:.2f}), good "
            f"{max(value for noise, value in good.items() if noise < 0.3):.2f} ({good[0.3]:.2f}), found "
            f"{len(row['spoiled']) - len(below)} of {len(row['spoiled'])}, not: {missed or 'none'}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder is not None:
        torch.set_num_threads(1)
        given.out.write_text(json.dumps(measure(given.folder, given.dtype, given.seeds)))
        return
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    for model in given.models.split(","):
        with tempfile.TemporaryDirectory(prefix="lpo-ray-proof-") as scratch:
            one, folder = Path(scratch) / "found.json", folder_of(model, Path(scratch) / "model")
            options = ["--folder", str(folder), "--dtype", given.dtype, "--seeds", str(given.seeds)]
            subprocess.run([sys.executable, __file__, str(one), *options], check=True)
            found[model] = json.loads(one.read_text())
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(summary(found) + "\n")


if __name__ == "__main__":
    main()
