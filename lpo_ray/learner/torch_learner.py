"""Learner on a single device in this process: plain torch, the same arithmetic as a ZeRO-3 rank."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.errors import CheckpointDamaged, ComponentFailed, LearnerLost
from lpo_ray.interfaces import Learner
from lpo_ray.learner.merge_ranks import merge_log_ratios, merge_reports
from lpo_ray.learner.norms import norms_by_kind, update_ratios
from lpo_ray.learner.packing import Packing, balance
from lpo_ray.learner.settings import Objective, OptimiserSettings
from lpo_ray.learner.updates import TrainablePolicy, log_ratios_to_engine, run_updates
from lpo_ray.policy.layout import Layout
from lpo_ray.policy.lora import AdapterSettings
from lpo_ray.policy.saving import save_policy
from lpo_ray.policy.scoring import Scorer, ScoringModel, response_logprobs
from lpo_ray.policy.tensor_digest import tensor_digest
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.policy.weights import TensorMeta, make_manifest, published
from lpo_ray.records import Anchor, FloatArray, ScoredGroup, ScoringItem, StepNorms, StepReport, TrainBatch


class TorchScorer(Scorer):
    """Scorer on one device."""

    def __init__(self, model: PreTrainedModel, *, attention: str = "auto", share_prompt: bool = False) -> None:
        """Prepare ``model`` for ``attention``, a value of learner.attention."""
        self.model, self.share_prompt = model, share_prompt
        self._scoring = ScoringModel(model, attention, share_prompt=share_prompt)
        self.packed = self._scoring.packed

    @override
    def score(self, layout: Layout, temperature: float) -> tuple[Tensor, Tensor]:
        return self._scoring(layout, temperature)

    @override
    def score_plainly(self, layout: Layout) -> Tensor:
        return self._scoring(layout, 1.0, plainly=True)[0]


class TorchPolicy(TorchScorer, TrainablePolicy):
    """TrainablePolicy on one device. A bf16 model has master weights and sums of gradients in fp32, as with ZeRO-3."""

    def __init__(
        self,
        model: PreTrainedModel,
        settings: OptimiserSettings,
        *,
        attention: str = "auto",
        share_prompt: bool = False,
    ) -> None:
        super().__init__(model, attention=attention, share_prompt=share_prompt)
        self._settings = settings
        self._weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._masters = {
            name: parameter if parameter.dtype != torch.bfloat16 else parameter.detach().float()
            for name, parameter in self._weights.items()
        }
        self.optimiser = torch.optim.AdamW(
            self._masters.values(), lr=0.0, betas=settings.betas, weight_decay=settings.weight_decay
        )

    @override
    def backward(self, loss: Tensor) -> None:
        loss.backward()
        for name, master in self._masters.items():
            weight = self._weights[name]
            if master is weight or weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad.add_(weight.grad)
            weight.grad = None

    @override
    def step(self, learning_rate: float) -> StepNorms:
        named = [(name, master.grad) for name, master in self._masters.items() if master.grad is not None]
        norm = torch.nn.utils.get_total_norm([gradient for _, gradient in named])
        gradients = norms_by_kind(named, self.sum_over_ranks)
        applied = bool(torch.isfinite(norm))
        if applied:
            torch.nn.utils.clip_grads_with_norm_(self._masters.values(), self._settings.gradient_clip, norm)
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, weight in self._weights.items():
                if self._masters[name] is not weight:
                    weight.copy_(self._masters[name])
        return StepNorms(float(norm), applied, gradients, self._update_ratios() if applied else {})

    @override
    def sum_over_ranks(self, values: Tensor) -> Tensor:
        return values

    def state(self) -> dict[str, dict[str, object]]:
        """Collect everything ``load_state`` needs: master weights and optimiser."""
        return {"weights": dict(self._masters), "optimiser": self.optimiser.state_dict()}

    def load_state(self, state: dict[str, dict[str, object]]) -> None:
        """Continue from what ``state`` returned."""
        self.optimiser.load_state_dict(state["optimiser"])
        with torch.no_grad():
            for name, master in self._masters.items():
                master.copy_(cast("Tensor", state["weights"][name]))
                self._weights[name].copy_(master)

    @torch.no_grad()
    def _update_ratios(self) -> dict[str, float]:
        states = ((name, master, self.optimiser.state[master]) for name, master in self._masters.items())
        shards = ((name, master, (state["exp_avg"], state["exp_avg_sq"])) for name, master, state in states)
        return update_ratios(shards, self.optimiser, self.sum_over_ranks)


class InprocessLearner(Learner):
    """Learner of one rank, in this process."""

    world_size = 1

    def __init__(
        self,
        policy: TorchPolicy,
        tokenizer: Tokenizer,
        objective: StepSchedule[Objective],
        packing: Packing,
        reference: Scorer | None = None,
        adapter: AdapterSettings | None = None,
    ) -> None:
        """``adapter``: that of the policy, if it has one."""
        self._adapter = adapter
        self.policy, self._tokenizer, self._objective = policy, tokenizer, objective
        self._packing, self._reference = packing, reference
        self.vocabulary = len(tokenizer)

    @override
    async def log_ratios(self, groups: Sequence[ScoredGroup]) -> Anchor:
        found = log_ratios_to_engine(self.policy, balance(groups, self._packing)[0], self._objective.at(0))
        return merge_log_ratios(groups, found)

    @override
    async def project(self, batch: TrainBatch) -> StepReport:
        objective = self._objective.at(batch.step)
        return merge_reports(
            [run_updates(self.policy, batch.updates, 0, objective, batch.learning_rate, self._reference)]
        )

    @override
    async def logprobs(self, forwards: Sequence[Sequence[ScoringItem]], temperature: float) -> list[FloatArray]:
        return [row for bundles in forwards for row in response_logprobs(self.policy, bundles, temperature)]

    def weights(self) -> dict[str, Tensor]:
        """Collect the policy's own tensors that are published, by name."""
        return {name: parameter.detach() for name, parameter in published(self.policy.model).items()}

    @override
    async def digest(self) -> str:
        weights = self.weights()
        metas = [TensorMeta(name, tuple(tensor.shape)) for name, tensor in weights.items()]
        dtype = str(self.policy.model.dtype).removeprefix("torch.")
        manifest = make_manifest(metas, dtype, bucket_bytes=1 << 30, num_senders=1)
        return manifest.digest({name: tensor_digest(tensor) for name, tensor in weights.items()})

    @override
    async def save(self, folder: Path) -> None:
        try:
            tensors = None if self._adapter is None else self.weights()
            save_policy(folder / "policy", self.policy.model, self._adapter, tensors)
            self._tokenizer.save(folder / "policy")
            (folder / "shards").mkdir()
            torch.save(self.policy.state(), folder / "shards" / "state.pt")
        except (RuntimeError, ValueError, SafetensorError) as error:  # torch and safetensors: a full disk, among others
            raise ComponentFailed("the learner", "save", f"{type(error).__name__}: {error}") from error

    @override
    async def restore(self, folder: Path, written_by: int) -> None:
        try:
            state = torch.load(folder / "shards" / "state.pt", weights_only=True)
        except pickle.UnpicklingError as error:
            why = "shards/state.pt has more than tensors, which could run code when read"
            raise CheckpointDamaged(str(folder), why) from error
        self.policy.load_state(state)

    @override
    async def reform(self, lost: LearnerLost) -> None:
        raise lost  # it cannot be lost: it is this process
