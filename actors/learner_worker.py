"""One ZeRO-3 rank as an actor. Every method but ``address`` is a collective over all ranks."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lpo_ray.learning import Objective, OptimiserSettings, log_ratios_to_engine, run_updates, sequence_logprobs
from lpo_ray.records import FloatArray, IntArray, ScoredGroup, TrainBatch, UpdateReport
from lpo_ray.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """How a rank is built."""

    model_path: str
    dtype: str
    objective: Objective
    optimiser: OptimiserSettings
    zero: Mapping[str, bool | int | float | str]
    gradient_checkpointing: bool
    threads: int


class LearnerWorker:
    """Plain class; ``cluster.py`` makes it an actor with one call at a time, so the ranks' collectives stay in step."""

    def __init__(self, rank: int, world_size: int, settings: LearnerSettings) -> None:
        self._rank, self._world_size, self._settings = rank, world_size, settings

    def address(self) -> tuple[str, int]:
        """Address of the host and a free port, for the ranks' meeting point."""
        from ray.util import get_node_ip_address

        with socket.socket() as probe:
            probe.bind(("", 0))
            return get_node_ip_address(), probe.getsockname()[1]

    def start(self, host: str, port: int) -> int:
        """Join the other ranks at ``host:port`` and load the policy; returns the process id."""
        from actors.zero3 import Zero3Policy, join_group
        from lpo_ray.model import load_policy

        settings = self._settings
        torch.set_num_threads(settings.threads)
        os.environ.update(
            RANK=str(self._rank),
            LOCAL_RANK="0",
            WORLD_SIZE=str(self._world_size),
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        join_group()
        self._tokenizer = Tokenizer.load(settings.model_path)
        self._policy = Zero3Policy(
            load_policy(settings.model_path, settings.dtype),
            settings.optimiser,
            settings.zero,
            gradient_checkpointing=settings.gradient_checkpointing,
            bfloat16=settings.dtype == "bfloat16",
        )
        return os.getpid()

    def log_ratios(self, micro_batches: Sequence[Sequence[ScoredGroup]]) -> list[list[FloatArray]]:
        """s_t of this rank's groups; every rank passes the same number of micro-batches."""
        return log_ratios_to_engine(self._policy, micro_batches, self._settings.objective)

    def project(self, batch: TrainBatch) -> list[UpdateReport]:
        """All updates of a step, on this rank's share."""
        return run_updates(self._policy, batch.updates, self._rank, self._settings.objective, batch.learning_rate)

    def logprobs(self, sequences: Sequence[IntArray]) -> list[FloatArray]:
        """Log-probs of tokens 1..T-1 of each sequence, [T-1]; the same on every rank."""
        return [sequence_logprobs(self._policy, sequence) for sequence in sequences]

    def weights(self) -> tuple[bytes, str] | None:
        """On rank 0 the safetensors bytes of the full policy and their digest, elsewhere None."""
        from lpo_ray.model import serialise, trainable_weights

        weights = self._policy.gather()
        if self._rank:
            return None
        return serialise(trainable_weights(weights.items(), self._policy.module))

    def shard_digests(self) -> dict[str, float]:
        """Norm of this rank's shard of each parameter."""
        return self._policy.shard_digests()

    def save(self, folder: Path) -> None:
        """``folder/shards`` from all ranks, ``folder/policy`` in Hugging Face format from rank 0."""
        self._policy.save(folder)
        weights = self._policy.gather()
        if self._rank == 0:
            self._policy.module.save_pretrained(folder / "policy", state_dict=weights)
            self._tokenizer.save(folder / "policy")
        torch.distributed.barrier()

    def restore(self, folder: Path) -> None:
        """Continue from ``save``."""
        self._policy.restore(folder)
