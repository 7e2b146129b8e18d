"""A single-device learner in this process: plain torch, the same arithmetic as a ZeRO-3 rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lpo_ray.learning import Objective, OptimiserSettings, log_ratios_to_engine, run_updates, sequence_logprobs
from lpo_ray.records import Anchor, FloatArray, IntArray, ScoredGroup, StepReport, TrainBatch
from lpo_ray.tokenizer import Tokenizer


class TorchPolicy:
    """TrainablePolicy on one device."""

    def __init__(self, model: PreTrainedModel, settings: OptimiserSettings) -> None:
        self.model, self._clip = model, settings.gradient_clip
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=0.0, betas=settings.betas, weight_decay=settings.weight_decay
        )

    def logits(self, token_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
        """See TrainablePolicy."""
        return self.model(
            input_ids=token_ids, attention_mask=attention_mask, logits_to_keep=keep, use_cache=False
        ).logits

    def backward(self, loss: Tensor) -> None:
        """See TrainablePolicy."""
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """See TrainablePolicy."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(norm)


class InprocessLearner:
    """Learner of one rank."""

    world_size = 1

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        objective: Objective,
        settings: OptimiserSettings,
    ) -> None:
        self.policy = TorchPolicy(model, settings)
        self._tokenizer, self._objective = tokenizer, objective
        self.vocabulary = len(tokenizer)

    async def log_ratios(self, groups: Sequence[ScoredGroup]) -> Anchor:
        """s_t of each group; one forward for each group."""
        parts = log_ratios_to_engine(self.policy, [[group] for group in groups], self._objective)
        return tuple(part[0] for part in parts)

    async def project(self, batch: TrainBatch) -> StepReport:
        """All updates of the step."""
        reports = run_updates(self.policy, batch.updates, 0, self._objective, batch.learning_rate)
        return StepReport(tuple(reports))

    async def logprobs(self, sequences: Sequence[IntArray]) -> list[FloatArray]:
        """One forward a sequence."""
        return [sequence_logprobs(self.policy, sequence) for sequence in sequences]

    async def save(self, folder: Path) -> None:
        """``folder/policy`` in Hugging Face format and ``folder/optimiser.pt``."""
        self.policy.model.save_pretrained(folder / "policy")
        self._tokenizer.save(folder / "policy")
        torch.save(self.policy.optimiser.state_dict(), folder / "optimiser.pt")

    async def restore(self, folder: Path) -> None:
        """Weights and optimiser state of ``save``."""
        restored = type(self.policy.model).from_pretrained(folder / "policy", dtype=self.policy.model.dtype)
        self.policy.model.load_state_dict(restored.state_dict())
        self.policy.optimiser.load_state_dict(torch.load(folder / "optimiser.pt", weights_only=True))
