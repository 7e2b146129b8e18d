"""How much memory a learner rank and an engine need, from a model's numbers. Values in, values out; nothing is read.

Legend: P parameters, W ranks, T positions of a micro-batch, H hidden size, V vocabulary, b bytes of an element.

A learner rank (``actors/learner/zero3.py``) always holds its share of the weights (b P / W), of fp32 master weights (4
P / W; none of their own for a float32 model), of two fp32 moments (8 P / W) and of fp32 gradients (4 P / W). Beside
that a step has three heights, of which the highest counts. When the scoring head is at work, all that the forward pass
kept is there. When the backward pass ends, a layer's activations and whole gradients are, and the embedding's. The
optimiser then takes one flat copy of the gradients (4 P / W). What the forward pass keeps of a layer is counted tensor
by tensor as autograd does for transformers' Llama and Qwen layers: norms, queries, keys, values, attention's output,
four widths of the feed-forward network. With gradient checkpointing it is each layer's input, and one layer whole.

Start and checkpoints have heights of their own in the host's memory. A rank that starts has a piece of the files and a
copy of its shards. For a checkpoint one of the ranks has the whole policy (b P).

With an adapter the model's weights have no master weights, moments or gradients; those are the adapter's, and so is the
checkpoint. What the adapter's own products keep, rank columns for each target, is not counted.

tests/tools/plan/test_sizes.py holds this against torch's own count on CPU. The GPU's attention and constants have not
met a GPU. Not counted: fragmentation of the allocator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lpo_ray.policy.logprob_head import chunk_tokens
from lpo_ray.policy.pieces import PIECE_ELEMENTS
from lpo_ray.tools.plan.architecture import Architecture

BYTES = {"float32": 4, "bfloat16": 2}
FP32 = 4
GIB = 2**30
LIVE_PARAMETERS = 10**9
"""DeepSpeed's stage3_max_live_parameters and stage3_max_reuse_distance, when learner.deepspeed does not set them"""
PREFETCH = 50_000_000
CPU_REDUCE_BUCKET, REDUCE_BUCKET = 20_000_000, 500_000_000
"""elements: of actors/learner/deepspeed_options.py on CPUs, and DeepSpeed's default"""
GPU_PROCESS = int(1.5 * GIB)
"""of a GPU's memory for a process with CUDA's context, cuBLAS workspaces and NCCL's buffers; an assumption"""
CPU_PROCESS = int(0.75 * GIB)
"""resident memory of a process that has imported torch, transformers and DeepSpeed or vLLM; an assumption"""
LOGITS_COPIES = 3
"""of a decode step in fp32 when vLLM samples and returns log-probs: logits, processed ones, their log-softmax"""


@dataclass(frozen=True, slots=True)
class RankSettings:
    """Settings of a learner rank that decide its memory."""

    world_size: int
    dtype: str
    tokens: int
    """positions of the largest micro-batch"""
    scored: int
    """of these, response tokens"""
    gradient_checkpointing: bool
    reference: bool
    """a frozen reference is loaded too"""
    offload_optimizer: bool
    """master weights, moments and gradients are in the host's memory"""
    offload_parameters: bool
    """the shards of weights are in the host's memory, or on disk"""
    live_parameters: int
    """elements that ZeRO-3 may keep gathered"""
    bucket_bytes: int
    """of the largest bucket in which weights travel"""
    on_gpu: bool
    reduce_bucket: int = CPU_REDUCE_BUCKET
    """elements of gradients that are reduced at once"""
    adapter: int = 0
    """parameters of the adapter that is trained in place of the model; 0: there is none"""


@dataclass(frozen=True, slots=True)
class EngineShape:
    """Settings of an engine that decide its memory."""

    dtype: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    max_num_seqs: int
    batched_tokens: int
    """positions of its largest forward"""
    bucket_bytes: int
    """of the largest bucket in which weights travel"""
    on_gpu: bool
    adapter: int = 0
    """parameters of an adapter that is served; 0: there is none"""
    versions: int = 1
    """of it that are alive at once"""

    @property
    def processes(self) -> int:
        """GPUs of the engine, or processes without one."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by what they are for. Made by rank_memory and engine_memory."""

    device: Mapping[str, int]
    """of the GPU, or of the host for a process that has none; their sum is the peak"""
    host: Mapping[str, int]
    """of the host beside a GPU"""
    save: int = 0
    """of the host, by one of the ranks and for the time of a checkpoint: the whole policy, for its folder"""

    @property
    def total(self) -> int:
        """Bytes of the device at the peak."""
        return sum(self.device.values())


def rank_memory(model: Architecture, rank: RankSettings) -> Memory:
    """Memory of one learner rank. ``gathered``: whole parameters that ZeRO-3 keeps; ``a step``: its higher peak."""
    size, share = BYTES[rank.dtype], -(-(rank.adapter or model.parameters) // rank.world_size)
    shards, gradients = size * -(-(model.parameters + rank.adapter) // rank.world_size), FP32 * share
    optimizer = (2 if rank.dtype == "float32" else 3) * FP32 * share
    gathered = size * _gathered(model, rank)
    device = {"weights": shards, "master weights and moments": optimizer, "gradients": gradients}
    host: dict[str, int] = {}
    if rank.reference:
        device["reference"] = shards
    if rank.offload_optimizer:  # gradients follow the optimiser, and are there twice
        host["master weights and moments"] = device.pop("master weights and moments")
        host["gradients"] = device.pop("gradients") + FP32 * share
        gradients = 0
    if rank.offload_parameters:
        host["weights"] = device.pop("weights")
        if rank.reference:
            host["reference"] = device.pop("reference")
    if gathered:
        device["gathered weights"] = gathered * (2 if rank.reference else 1)
    device["reduce bucket"] = FP32 * min(rank.reduce_bucket, rank.adapter or model.parameters)
    device["a step"] = max(step_heights(model, rank))
    loading, save = load_height(model, rank), size * 2 * (rank.adapter or max(model.largest_parameter, model.embedding))
    if rank.on_gpu:
        host["reading weights"] = loading
    else:  # while weights are read there is nothing yet of what a step needs, and no optimiser
        device["a step"] = max(device["a step"], loading - optimizer - gradients)
        save = max(0, save - device["a step"])
    device["transport buckets"] = 3 * rank.bucket_bytes  # two to send from, and what is gathered for the next
    device["process"] = GPU_PROCESS if rank.on_gpu else CPU_PROCESS
    if not rank.on_gpu:  # one memory: what is offloaded is beside the rest
        for name, value in host.items():
            device[name] = device.get(name, 0) + value
        host = {}
    return Memory(device, host, save)


def load_height(model: Architecture, rank: RankSettings) -> int:
    """Bytes of the host that a rank needs to read weights, beside the shards: a piece of the files, as it is in them
    and as the model has it; and one flat copy of the shards, which DeepSpeed makes of them.
    """
    piece = min(model.parameters, max(PIECE_ELEMENTS, model.largest_parameter, model.embedding))
    return BYTES[rank.dtype] * (2 * piece + -(-model.parameters // rank.world_size))


def _gathered(model: Architecture, rank: RankSettings) -> int:
    """Elements that are whole on a rank beside its shards. One rank's shards are whole."""
    if rank.world_size == 1 and not rank.offload_parameters:
        return 0
    least = max(model.largest_layer, model.embedding)
    return min(model.parameters, max(least, rank.live_parameters) + PREFETCH)


def step_heights(model: Architecture, rank: RankSettings) -> tuple[int, int, int]:
    """Bytes of a step on top of what a rank always holds: at the scoring head, when the backward pass ends, and in
    the optimiser.
    """
    size, layer = BYTES[rank.dtype], layer_activations(model, rank.dtype, rank.tokens, on_gpu=rank.on_gpu)
    checkpoint = size * model.hidden_size * rank.tokens
    kept = model.num_layers * (checkpoint if rank.gradient_checkpointing else layer)
    whole = rank.world_size > 1 or rank.dtype == "bfloat16"  # else a gradient is written where it stays
    last_norm = (_norm_bytes(rank.dtype) + size) * model.hidden_size * rank.tokens
    frozen = rank.adapter > 0
    start = kept + last_norm + head_memory(model, rank.dtype, rank.scored, on_gpu=rank.on_gpu, frozen=frozen)
    gradients = -(-rank.adapter // model.num_layers) if frozen else model.largest_layer + model.embedding
    end = layer + size * (gradients if whole else 0)
    share = -(-(rank.adapter or model.parameters) // rank.world_size)
    flat = 0 if rank.offload_optimizer else FP32 * share
    return start, end, flat


def layer_activations(model: Architecture, dtype: str, tokens: int, *, on_gpu: bool) -> int:
    """Bytes that the forward pass of one decoder layer keeps for the backward pass.

    A norm keeps its input and the normalised value: both in fp32 for a float32 model; input in fp32 and value in bf16
    for a bfloat16 one, which it converts. Its result is kept by the linear layers behind it.
    """
    size = BYTES[dtype]
    norm = _norm_bytes(dtype)
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    # In half precision on a GPU keys and values stay narrow; else they are repeated for each head (policy/attention.py)
    attention = 2 * queries + 2 * keys if on_gpu and dtype == "bfloat16" else 4 * queries
    per_token = (
        2 * model.hidden_size * (norm + size)
        + attention * size
        + (queries + keys) * norm * model.qk_norm
        + 4 * model.intermediate_size * size
    )
    return per_token * tokens


def _norm_bytes(dtype: str) -> int:
    """Bytes of each element that a norm keeps, its result left out."""
    return 2 * FP32 if dtype == "float32" else FP32 + BYTES[dtype]


def head_memory(model: Architecture, dtype: str, scored: int, *, on_gpu: bool, frozen: bool = False) -> int:
    """Bytes of the scoring head (policy/logprob_head.py), the higher of two. Forward: a chunk's logits, probabilities
    and log-sum-exp in fp32. Backward: its logits, the weight's gradient in fp32 and, for a narrow model, twice in its
    width; a ``frozen`` head has no such gradient. In both a narrow model has a chunk in its width; hidden states of the
    ``scored`` tokens come on top.
    """
    size = BYTES[dtype]
    rows = min(chunk_tokens(model.vocab_size, size, on_gpu=on_gpu), scored)
    chunk, narrow = rows * model.vocab_size, size if size == 2 else 0
    forward = chunk * (3 * FP32 + narrow)
    backward = chunk * (FP32 + narrow) + (0 if frozen else model.embedding * (FP32 + 2 * narrow))
    return max(forward, backward) + 3 * scored * model.hidden_size * size


def kv_bytes_per_token(
    model: Architecture, dtype: str, tensor_parallel_size: int = 1, pipeline_parallel_size: int = 1
) -> int:
    """Bytes of the KV cache for one position in all layers, on one of an engine's GPUs. KV heads are repeated where
    GPUs outnumber them.
    """
    layers = -(-model.num_layers // pipeline_parallel_size)
    heads = max(1, -(-model.num_kv_heads // tensor_parallel_size))
    return 2 * layers * heads * model.head_dim * BYTES[dtype]


def engine_kv_bytes(model: Architecture, engine: EngineShape) -> int:
    """Bytes of an engine's KV cache for one position, on one of its GPUs."""
    return kv_bytes_per_token(model, engine.dtype, engine.tensor_parallel_size, engine.pipeline_parallel_size)


def engine_memory(model: Architecture, engine: EngineShape) -> Memory:
    """Memory of one GPU of an engine without its KV cache. ``new weights`` (two buckets and the layer that is being put
    together) come on top of what gpu_memory_utilization allows vLLM.
    """
    size, parts = BYTES[engine.dtype], engine.tensor_parallel_size
    widest = max(model.hidden_size, 2 * model.intermediate_size // parts)
    forward = engine.batched_tokens * (2 * model.hidden_size + 2 * widest) * size if engine.on_gpu else 0
    logits = LOGITS_COPIES * FP32 * engine.max_num_seqs * model.vocab_size
    return Memory(
        {
            "weights": -(-size * model.parameters // engine.processes),
            "largest forward": forward + logits,
            "process": GPU_PROCESS if engine.on_gpu else CPU_PROCESS,
            **({"adapters": size * engine.adapter * engine.versions} if engine.adapter else {}),
            "new weights": 2 * engine.bucket_bytes + size * (engine.adapter or model.largest_layer),
        },
        {},
    )


@dataclass(frozen=True, slots=True)
class KvCache:
    """KV cache of one engine."""

    num_bytes: int
    """of one of its GPUs; negative: the weights alone do not fit"""
    bytes_per_token: int

    @property
    def tokens(self) -> int:
        """Positions that fit."""
        return max(0, self.num_bytes) // self.bytes_per_token

    def responses(self, tokens: float) -> int:
        """Responses of ``tokens`` positions each, prompt included, that fit at once."""
        return math.floor(self.tokens / tokens)


def kv_cache(model: Architecture, engine: EngineShape, memory_gib: float, utilization: float) -> KvCache:
    """KV cache in what ``utilization`` of a GPU's memory leaves."""
    used = engine_memory(model, engine).device
    room = int(utilization * memory_gib * GIB) - (sum(used.values()) - used["new weights"])
    return KvCache(room, engine_kv_bytes(model, engine))
