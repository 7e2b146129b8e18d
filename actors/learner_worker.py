"""One ZeRO-3 rank as an actor. Every method but ``address`` is a collective over all ranks."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import torch

from lpo_ray.learning import LearnerSettings, log_ratios_to_engine, run_updates
from lpo_ray.records import FloatArray, IntArray, Key, MicroBatch, ScoredGroup, TrainBatch, UpdateReport
from lpo_ray.scoring import sequence_logprobs
from lpo_ray.tokenizer import Tokenizer

KEEP_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""environment of a rank on CPU: malloc keeps large blocks. Each step needs the same ones again, and having the kernel
map and zero them anew costs 7 to 10 % of it."""


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
        from actors.zero3 import Zero3Policy, Zero3Scorer, join_group
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
        attention, share = settings.attention, settings.packing.share_prompt
        self._policy = Zero3Policy(
            load_policy(settings.model_path, settings.dtype),
            settings.zero,
            attention=attention,
            share_prompt=share,
            settings=settings.optimiser,
            gradient_checkpointing=settings.gradient_checkpointing,
        )
        self._reference = None
        if settings.objective.reference_kl:
            frozen = load_policy(settings.reference_path, settings.dtype)
            self._reference = Zero3Scorer(frozen, settings.zero, attention=attention, share_prompt=share)
        return os.getpid()

    def log_ratios(
        self, shares: Sequence[Sequence[MicroBatch[ScoredGroup]]]
    ) -> list[tuple[Key, tuple[int, ...], FloatArray]]:
        """s_t of this rank's share of the pieces."""
        return log_ratios_to_engine(self._policy, shares[self._rank], self._settings.objective)

    def project(self, batch: TrainBatch) -> list[UpdateReport]:
        """All updates of a step, on this rank's share."""
        objective = self._settings.objective
        return run_updates(self._policy, batch.updates, self._rank, objective, batch.learning_rate, self._reference)

    def logprobs(self, sequences: Sequence[IntArray]) -> list[FloatArray]:
        """Log-probs of tokens 1..T-1 of each sequence, [T-1]; the same on every rank."""
        return [sequence_logprobs(self._policy, sequence) for sequence in sequences]

    def weights(self) -> tuple[bytes, str] | None:
        """On rank 0 the safetensors bytes of the full policy and their digest, elsewhere None."""
        from lpo_ray.model import serialise, trainable_weights

        weights = self._policy.gather()
        if self._rank:
            return None
        return serialise(trainable_weights(weights.items(), self._policy.model))

    def shard_digests(self) -> dict[str, float]:
        """Norm of this rank's shard of each parameter."""
        return self._policy.shard_digests()

    def save(self, folder: Path) -> None:
        """``folder/shards`` from all ranks, ``folder/policy`` in Hugging Face format from rank 0."""
        self._policy.save(folder)
        weights = self._policy.gather()
        if self._rank == 0:
            self._policy.model.save_pretrained(folder / "policy", state_dict=weights)
            self._tokenizer.save(folder / "policy")
        torch.distributed.barrier()

    def restore(self, folder: Path, written_by: int) -> None:
        """Continue from ``save`` by ``written_by`` ranks."""
        self._policy.restore(folder, written_by)
