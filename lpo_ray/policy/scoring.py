"""Scoring: one forward of the policy gives log-prob and entropy of each sampled token.

Legend: N responses of a micro-batch, T sampled tokens of the longest, M sampled tokens together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lpo_ray.errors import ConfigError
from lpo_ray.policy.attention import PACKED, supports_packing
from lpo_ray.policy.layout import Layout, lay_out
from lpo_ray.policy.logprob_head import LogitShape, ScoringHead
from lpo_ray.records import FloatArray, ScoringItem


class Scorer(Protocol):
    """Scores tokens: a policy being trained, or a frozen reference. With ZeRO-3 all ranks must call at once."""

    packed: bool
    share_prompt: bool

    def score(self, layout: Layout, temperature: float) -> tuple[Tensor, Tensor]:
        """Compute [M] log-prob and [M] entropy of the layout's sampled tokens."""
        ...

    def score_plainly(self, layout: Layout) -> Tensor:
        """Compute [M] log-prob by the model's own forward and logits, as others would. ``layout`` is padded."""
        ...


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores of N responses padded to T tokens, in fp32 or better."""

    logprobs: Tensor
    """[N, T] of the sampled tokens at the sampling temperature; 0 where padded"""
    entropy: Tensor
    """[N, T] nats, without gradient"""
    mask: Tensor
    """[N, T] bool"""
    padding: float
    """share of the forward's positions that held no token"""


class ScoringModel(nn.Module):
    """A causal language model whose forward ends in scores instead of logits."""

    def __init__(self, model: PreTrainedModel, attention: str, *, share_prompt: bool) -> None:
        """Prepare ``model`` for ``attention``, a value of learner.attention. Raises ConfigError."""
        super().__init__()
        self.model = model
        self._own_attention = str(model.config._attn_implementation)
        self.packed = _prepare_packing(model, attention, share_prompt=share_prompt)
        self.head = _head_of(model)

    def forward(self, layout: Layout, temperature: float, *, plainly: bool = False) -> tuple[Tensor, Tensor]:
        """Compute [M] log-prob and [M] entropy of the layout's sampled tokens.

        ``plainly``: by the model's own forward and logits, at temperature 1, which costs [T, V] of memory.
        """
        if plainly:
            return self._plainly(layout)
        device = self.model.device
        rows = {} if layout.rows is None else {"rows": layout.rows.to(device)}
        mask = layout.attention_mask
        hidden = self.model.base_model(
            input_ids=layout.token_ids.to(device),
            position_ids=layout.position_ids.to(device),
            attention_mask=None if mask is None else mask.to(device),
            use_cache=False,
            **rows,
        ).last_hidden_state.flatten(0, 1)
        # Without a response the first token stands in: its score is not used, but every parameter takes part, which
        # the collectives of ZeRO-3's backward pass need.
        select = layout.select if len(layout.select) else torch.zeros(1, dtype=torch.long)
        targets = layout.targets if len(layout.targets) else torch.zeros(1, dtype=torch.long)
        return self.head(hidden.index_select(0, select.to(device)), targets.to(device), temperature)

    def _plainly(self, layout: Layout) -> tuple[Tensor, Tensor]:
        device = self.model.device
        if self.packed:
            self.model.set_attn_implementation(self._own_attention)
        try:
            logits = self.model(input_ids=layout.token_ids.to(device), use_cache=False).logits.flatten(0, 1)
        finally:
            if self.packed:
                self.model.set_attn_implementation(PACKED)
        logprobs = logits.index_select(0, layout.select.to(device)).float().log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(1, layout.targets.to(device)[:, None])[:, 0], entropy


def _prepare_packing(model: PreTrainedModel, wanted: str, *, share_prompt: bool) -> bool:
    """Give the model packed attention, if ``wanted`` ("auto", "packed" or "padded") and its kind allow it.

    Returns whether it has it now. Raises ConfigError when "packed" or a shared prompt is wanted of a model that cannot.
    """
    able = supports_packing(model)
    if not able and (wanted == "packed" or share_prompt):
        asked = "learner.attention=packed" if wanted == "packed" else "pipeline.share_prompt=true"
        raise ConfigError(
            f"{asked}, but {type(model).__name__} has attention that cannot be replaced, or layers that are not full "
            "causal attention; set learner.attention=padded and pipeline.share_prompt=false"
        )
    if wanted == "padded" or not able:
        return False
    model.set_attn_implementation(PACKED)
    return True


def score_bundles(scorer: Scorer, bundles: Sequence[ScoringItem], temperature: float) -> TokenScores:
    """Run one forward over all responses of ``bundles``, in order. Without any it still runs one, over one token."""
    layout = lay_out(bundles, packed=scorer.packed, share_prompt=scorer.share_prompt)
    logprobs, entropy = scorer.score(layout, temperature)
    lengths = torch.tensor(layout.lengths, dtype=torch.long, device=logprobs.device)
    if not len(lengths):
        return TokenScores(logprobs[None] * 0.0, entropy[None] * 0.0, torch.zeros_like(entropy[None]).bool(), 0.0)
    mask = torch.arange(int(max(layout.lengths)), device=logprobs.device) < lengths[:, None]
    zeros = torch.zeros(mask.shape, dtype=logprobs.dtype, device=logprobs.device)
    return TokenScores(zeros.masked_scatter(mask, logprobs), zeros.masked_scatter(mask, entropy), mask, layout.padding)


def response_logprobs(scorer: Scorer, bundles: Sequence[ScoringItem], temperature: float = 1.0) -> list[FloatArray]:
    """Compute the log-probs of each response's sampled tokens in one forward, which runs even without responses."""
    with torch.no_grad():
        scores = score_bundles(scorer, bundles, temperature)
    return [row[mask].cpu().numpy() for row, mask in zip(scores.logprobs, scores.mask, strict=True) if mask.any()]


def _head_of(model: PreTrainedModel) -> ScoringHead:
    """Make the scoring head of a model with a linear one, whose logits may be scaled and soft-capped.

    Which keys of its config say so is known for some families; ``dry_check`` finds it out when a model has others.
    Raises ConfigError for a head that is not linear.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            f"the output head of {type(model).__name__} is not a linear layer ({type(head).__name__}); expected one"
        )
    product, multiplier, divisor, cap, other_cap = (
        getattr(config, name, None)
        for name in (
            "logit_scale", "lm_head_multiplier", "logits_scaling", "final_logit_softcapping", "logits_soft_cap",
        )
    )  # fmt: skip
    shape = LogitShape((product or 1.0) * (multiplier or 1.0) / (divisor or 1.0), cap or other_cap)
    return ScoringHead(cast("nn.Parameter", head.weight), head.bias, shape)
