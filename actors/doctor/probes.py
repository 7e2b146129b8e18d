"""Probes of `lpo-ray doctor` that need vllm, ray and deepspeed.

``python -m actors.doctor.probes imports | extension | engine`` runs one of them. Each is a process of its own, and ends
with one JSON object as the last line of its standard output.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from lpo_ray.records import IntArray
from lpo_ray.tools.doctor.findings import root
from lpo_ray.tools.doctor.stack import TOKENS

CONTEXT = 128
PROMPT = "3 + 4 = "
KV_CACHE_BYTES = 64 << 20
GPU_BYTES = 3 << 30
"""memory of a GPU that a model of 1.8 M parameters may take"""


def imports() -> Mapping[str, object]:
    """Import what a learner rank imports, in its order."""
    import deepspeed
    import ray
    import transformers

    try:
        transformers.Qwen3ForCausalLM  # noqa: B018 - lazy: this is where a torchvision of another build shows
    except ImportError as error:
        raise root(error) from None
    return {"ray": ray.__version__, "deepspeed": deepspeed.__version__, "transformers": transformers.__version__}


def extension() -> Mapping[str, object]:
    """Load vLLM's operators as its own start does. vLLM only warns when that fails; here the warning is the error."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import platforms

    warnings: list[str] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    collecting = Collecting(logging.WARNING)
    logging.getLogger("vllm").addHandler(collecting)
    platforms.current_platform.import_kernels()
    logging.getLogger("vllm").removeHandler(collecting)
    if not hasattr(torch.ops._C, "rms_norm"):
        raise ImportError(f"vllm's operators are not there: {'; '.join(warnings) or 'no reason was given'}")
    return {"platform": platforms.current_platform.device_name}


def engine() -> Mapping[str, object]:
    """Decode ten tokens with a random model, and compare their log-probs with those of transformers."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    from lpo_ray.tasks.base_policy import character_tokenizer, make_model

    with tempfile.TemporaryDirectory(prefix="lpo-ray-doctor-") as folder:
        tokenizer = character_tokenizer()
        make_model(tokenizer, seed=0).save_pretrained(folder)
        tokenizer.save(Path(folder))
        prompt = tokenizer.encode(PROMPT)
        token_ids, logprobs = asyncio.run(_decode(folder, prompt))
        expected = _logprobs(folder, [*prompt.tolist(), *token_ids])[-len(token_ids) :]
    difference = max(abs(ours - theirs) for ours, theirs in zip(logprobs, expected, strict=True))
    return {"tokens": len(token_ids), "difference": difference}


async def _decode(folder: str, prompt: IntArray) -> tuple[list[int], list[float]]:
    """Decode token ids and their log-probs with an engine that is built as a rollout worker builds its own."""
    from actors.rollout.engine_args import engine_arguments
    from actors.rollout.inflight import RULES
    from actors.rollout.worker import engine_environment
    from lpo_ray.config.schema import Inflight
    from lpo_ray.rollout.engine_settings import EngineSettings

    on_gpu = torch.cuda.is_available()
    total = torch.cuda.get_device_properties(0).total_memory if on_gpu else GPU_BYTES
    settings = EngineSettings(
        model_path=folder,
        dtype="float32",
        max_model_len=CONTEXT,
        max_num_seqs=4,
        tensor_parallel_size=1,
        num_processes=1,
        gpu_memory_utilization=min(0.9, GPU_BYTES / total),
        enforce_eager=True,
        asynchronous=on_gpu,
        on_cpu=not on_gpu,
        kv_cache_bytes=KV_CACHE_BYTES,
        inflight=Inflight.keep_recompute,
        trust_remote_code=False,
    )
    os.environ.update(engine_environment(settings, threads=1))
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from actors.rollout.adapter import ServedAdapter
    from actors.rollout.async_engine import AsyncEngine
    from actors.rollout.sync_engine import SyncEngine

    arguments, rule = engine_arguments(settings, "shared_memory"), RULES[settings.inflight]
    engine = (AsyncEngine if on_gpu else SyncEngine)(arguments, rule, ServedAdapter(None))
    params = SamplingParams(
        max_tokens=TOKENS, ignore_eos=True, seed=0, logprobs=0, detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )  # fmt: skip
    output = await engine.generate("doctor", prompt.tolist(), params)
    engine.close()
    sampled = output.outputs[0] if output is not None else None
    if sampled is None or sampled.logprobs is None:
        raise RuntimeError("the engine gave no tokens")
    rows = zip(sampled.token_ids, sampled.logprobs, strict=True)
    return list(sampled.token_ids), [row[token].logprob for token, row in rows if row is not None]


@torch.no_grad()
def _logprobs(folder: str, token_ids: list[int]) -> list[float]:
    from lpo_ray.policy.loading import load_policy

    logits = load_policy(folder, "float32")(input_ids=torch.tensor([token_ids])).logits[0, :-1]
    following = torch.tensor(token_ids[1:])[:, None]
    return logits.float().log_softmax(-1).gather(1, following)[:, 0].tolist()


PROBES: dict[str, Callable[[], Mapping[str, object]]] = {"imports": imports, "extension": extension, "engine": engine}

if __name__ == "__main__":
    result = PROBES[sys.argv[1]]()
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the result is out; what a library does at exit is not what is asked here
