"""The five components without Ray: everything in this process, for a debugger and for fast tests."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from safetensors.torch import load

from lpo_ray.errors import GroupLost, WeightsNotProved
from lpo_ray.inprocess.engine import TransformersEngine
from lpo_ray.inprocess.learner import InprocessLearner
from lpo_ray.learning import Objective, OptimiserSettings
from lpo_ray.model import (
    digest_of,
    largest_difference,
    load_policy,
    probe_sequences,
    serialise,
    trainable_weights,
)
from lpo_ray.records import Anchor, PromptGroup, ScoredGroup, TargetGroup, WeightsVersion
from lpo_ray.targets import TargetRule, build_targets
from lpo_ray.tokenizer import Tokenizer
from lpo_ray.verifiers.run import verify


class InprocessVerifier:
    """Calls the verifier's function directly. No deadline: a verifier that hangs can be looked at."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    async def score(self, group: PromptGroup) -> ScoredGroup:
        """See interfaces.Verifier."""
        prompt = self._tokenizer.decode(group.prompt.token_ids)
        rewards = []
        for number, response in enumerate(group.responses):
            text = self._tokenizer.decode(response.token_ids)
            verdict = verify(group.prompt.verifier, prompt, text, group.prompt.answer)
            if verdict.reward is None:
                raise GroupLost(
                    group.prompt.prompt_id, group.attempt, f"response {number} stayed unscored: {verdict.detail}"
                )
            rewards.append(verdict.reward)
        return ScoredGroup(group, np.asarray(rewards, dtype=np.float32))


class InprocessTargetBuilder:
    """Builds targets here."""

    def __init__(self, rule: TargetRule) -> None:
        self._rule = rule

    async def build(self, groups: Sequence[ScoredGroup], anchor: Anchor) -> list[TargetGroup]:
        """See interfaces.TargetBuilder."""
        return build_targets(groups, anchor, self._rule)


class InprocessTransport:
    """Copies the learner's weights into the engine's model, through the same bytes, digest and probe as on Ray."""

    def __init__(self, learner: InprocessLearner, engine: TransformersEngine, context: int, tolerance: float) -> None:
        self._learner, self._engine, self._tolerance = learner, engine, tolerance
        self._probe = probe_sequences(learner.vocabulary, context)

    async def publish(self, step: int) -> WeightsVersion:
        """See interfaces.WeightTransport."""
        model = self._learner.policy.model
        payload, digest = serialise(trainable_weights(model.named_parameters(), model))
        version = WeightsVersion(step, digest)
        self._engine.load(load(payload), step)
        expected = await self._learner.logprobs(self._probe)
        difference = largest_difference(expected, [self._engine.logprobs(sequence) for sequence in self._probe])
        if difference > self._tolerance or digest_of(payload) != digest:
            raise WeightsNotProved("the in-process engine", str(version), difference, self._tolerance, "probe differs")
        return version


@dataclass(frozen=True, slots=True)
class InprocessComponents:
    """See interfaces.Components."""

    rollout: TransformersEngine
    verifier: InprocessVerifier
    target_builder: InprocessTargetBuilder
    learner: InprocessLearner
    transport: InprocessTransport

    async def close(self) -> None:
        """There is nothing to end."""


def build_inprocess(
    model_path: str,
    dtype: str,
    context: int,
    objective: Objective,
    rule: TargetRule,
    optimiser: OptimiserSettings,
    tolerance: float,
) -> InprocessComponents:
    """All components around one model folder."""
    model, tokenizer = load_policy(model_path, dtype), Tokenizer.load(model_path)
    engine = TransformersEngine(copy.deepcopy(model), tokenizer.eos_token_id, tokenizer.pad_token_id)
    learner = InprocessLearner(model, tokenizer, objective, optimiser)
    transport = InprocessTransport(learner, engine, context, tolerance)
    return InprocessComponents(engine, InprocessVerifier(tokenizer), InprocessTargetBuilder(rule), learner, transport)
