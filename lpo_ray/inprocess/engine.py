"""A rollout engine on transformers' ``generate``, in this process: slow, and open to a breakpoint."""

from __future__ import annotations

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from lpo_ray.records import FloatArray, IntArray, Prompt, PromptGroup, Response, Sampling
from lpo_ray.seeds import derive_seed


class TransformersEngine:
    """Samples from its own copy of the policy; ``load`` replaces that copy's weights."""

    def __init__(self, model: PreTrainedModel, eos_token_id: int, pad_token_id: int) -> None:
        """``model`` is owned by the engine and must not be trained."""
        self._model = model.eval()
        self._eos, self._pad = eos_token_id, pad_token_id
        self.step = 0

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """All K responses in one batch, seeded by (run seed, prompt, attempt)."""
        size = sampling.group_size
        token_ids = torch.from_numpy(np.tile(prompt.token_ids, (size, 1)))
        greedy = sampling.temperature == 0
        warp = {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "min_p": sampling.min_p}
        config = GenerationConfig(
            do_sample=not greedy,
            top_k=sampling.top_k,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=self._eos,
            pad_token_id=self._pad,
            return_dict_in_generate=True,
            output_scores=True,
            **warp,
        )
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(derive_seed(sampling.seed, prompt.prompt_id, attempt))
            output = self._model.generate(  # pyright: ignore[reportCallIssue] - from GenerationMixin
                token_ids, attention_mask=torch.ones_like(token_ids), generation_config=config
            )
        sampled = output.sequences[:, token_ids.shape[1] :]
        scores = torch.stack(output.scores, dim=1).float().log_softmax(-1)
        logprobs = scores.gather(2, sampled[..., None])[..., 0]
        return PromptGroup(prompt, attempt, tuple(self._response(*row) for row in zip(sampled, logprobs, strict=True)))

    def load(self, weights: dict[str, torch.Tensor], step: int) -> None:
        """Serve ``weights`` from now on, as version ``step``."""
        missing, unexpected = self._model.load_state_dict(weights, strict=False)
        if unexpected or [name for name in missing if name != "lm_head.weight"]:
            raise ValueError(f"weights do not fit the engine's model: missing {missing}, unexpected {unexpected}")
        self.step = step

    def logprobs(self, sequence: IntArray) -> FloatArray:
        """Log-probs of tokens 1..T-1 of ``sequence`` at temperature 1, [T-1]."""
        with torch.no_grad():
            token_ids = torch.from_numpy(sequence)[None]
            scores = self._model(token_ids).logits[0, :-1].float().log_softmax(-1)
        return scores.gather(1, token_ids[0, 1:, None])[:, 0].numpy()

    def _response(self, token_ids: torch.Tensor, logprobs: torch.Tensor) -> Response:
        stops = (token_ids == self._eos).nonzero()
        length = int(stops[0]) + 1 if len(stops) else len(token_ids)
        return Response(
            token_ids[:length].numpy().astype(np.int64),
            logprobs[:length].numpy().astype(np.float32),
            np.full(length, self.step, dtype=np.int64),
            "stop" if len(stops) else "length",
        )
