"""One vLLM engine as an actor: samples groups, takes new weights, answers probes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from lpo_ray.errors import GroupLost
from lpo_ray.records import FloatArray, IntArray, Prompt, PromptGroup, Response, Sampling
from lpo_ray.seeds import derive_seed

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.config.model import ModelDType
    from vllm.logprobs import FlatLogprobs


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine is built."""

    model_path: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    tensor_parallel_size: int
    gpu_memory_utilization: float
    enforce_eager: bool
    asynchronous: bool
    on_cpu: bool


class RolloutWorker:
    """Plain class; ``cluster.py`` makes it an actor. All methods but ``start`` may run concurrently."""

    def __init__(self, name: str, settings: EngineSettings) -> None:
        self._name, self._settings = name, settings

    async def start(self) -> int:
        """Load the model (seconds to minutes); returns the worker's process id."""
        from vllm import SamplingParams
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.sampling_params import RequestOutputKind

        from actors.engines import AsynchronousEngine, InprocessEngine

        settings = self._settings
        self._params, self._kind = SamplingParams, RequestOutputKind
        # On CPU a seeded request whose prompt is prefilled in chunks kills the engine ("CPU Generator does not use
        # offset": vLLM rolls the generator back after a partial prefill); so prompts are prefilled whole there.
        whole_prompts = {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(settings.max_model_len, 8192),
        }
        arguments = AsyncEngineArgs(
            model=settings.model_path,
            dtype=cast("ModelDType", settings.dtype),
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            tensor_parallel_size=settings.tensor_parallel_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            enforce_eager=settings.enforce_eager,
            # Log-probs of the distribution that was really sampled from, temperature included.
            logprobs_mode="processed_logprobs",
            worker_extension_cls="actors.worker_extension.WorkerExtension",
            disable_log_stats=True,
            generation_config="vllm",
            **(whole_prompts if settings.on_cpu else {}),
        )
        if settings.asynchronous:
            self._engine = AsynchronousEngine(arguments)
        else:
            self._engine = await asyncio.to_thread(InprocessEngine, arguments)
        return os.getpid()

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """All K responses, each with a seed of its own. Raises GroupLost when vLLM refuses or aborts one."""
        tasks = [
            asyncio.ensure_future(self._one(prompt, sampling, attempt, index)) for index in range(sampling.group_size)
        ]
        try:
            return PromptGroup(prompt, attempt, tuple(await asyncio.gather(*tasks)))
        except (ValueError, RuntimeError) as error:
            self._engine.check()
            raise GroupLost(prompt.prompt_id, attempt, f"{self._name}: {error}") from error
        finally:
            for task in tasks:
                task.cancel()

    async def update_weights(self, payload: bytes, step: int) -> str:
        """Serve these weights from the next token on; returns the digest of the bytes that arrived."""
        return await self._engine.update_weights(payload, str(step))

    async def logprobs(self, sequences: Sequence[IntArray]) -> list[FloatArray]:
        """Log-probs of tokens 1..T-1 of each sequence as the engine computes them now, [T-1] each."""
        params = self._params(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, output_kind=self._kind.FINAL_ONLY
        )
        outputs = await asyncio.gather(
            *(
                self._engine.generate(f"probe-{os.urandom(8).hex()}", sequence.tolist(), params)
                for sequence in sequences
            )
        )
        return [_prompt_logprobs(output, sequence) for output, sequence in zip(outputs, sequences, strict=True)]

    async def close(self) -> None:
        """End the engine and its processes."""
        self._engine.close()

    async def _one(self, prompt: Prompt, sampling: Sampling, attempt: int, index: int) -> Response:
        params = self._params(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_tokens,
            seed=derive_seed(sampling.seed, prompt.prompt_id, attempt, index),
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=self._kind.FINAL_ONLY,
        )
        request_id = f"{prompt.prompt_id}/{attempt}/{index}/{sampling.seed}-{os.urandom(4).hex()}"
        output = (await self._engine.generate(request_id, prompt.token_ids.tolist(), params)).outputs[0]
        if output.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended response {index} with finish_reason={output.finish_reason!r}")
        count = len(output.token_ids)
        versions = np.zeros(count, dtype=np.int64)
        for span in output.weight_versions or []:
            versions[span.start : span.end] = int(span.version)
        logprobs = np.asarray(cast("FlatLogprobs", output.logprobs).logprobs, dtype=np.float32)
        return Response(np.asarray(output.token_ids, dtype=np.int64), logprobs, versions, output.finish_reason)


def _prompt_logprobs(output: RequestOutput, sequence: IntArray) -> FloatArray:
    """[T-1] log-probs of the tokens after the first."""
    if output.prompt_logprobs is None:
        raise RuntimeError("vLLM returned no prompt log-probs for the probe")
    rows = zip(output.prompt_logprobs[1:], sequence[1:], strict=True)
    return np.asarray([row[int(token)].logprob for row, token in rows if row is not None], dtype=np.float32)
