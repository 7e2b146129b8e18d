"""Composition root without Ray: the five components in this process, for a debugger and for fast tests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from lpo_ray.agents.conversations import HostedEnvironments
from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.errors import ConfigError, WeightsNotProved
from lpo_ray.interfaces import RolloutEngine, TurnEngine
from lpo_ray.learner.targets import TargetRule, build_targets
from lpo_ray.learner.torch_learner import InprocessLearner, TorchPolicy, TorchScorer
from lpo_ray.policy.dry_check import check_numbers
from lpo_ray.policy.generation import end_tokens
from lpo_ray.policy.loading import enable_checkpointing, load_policy
from lpo_ray.policy.lora import AdapterSettings
from lpo_ray.policy.proof_limits import ProofLimits
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.policy.weights_proof import as_answered, as_bundles, compare, largest_difference
from lpo_ray.records import (
    Anchor,
    BusyWorker,
    FloatArray,
    Key,
    Process,
    PromptGroup,
    Publication,
    ScoredGroup,
    TargetGroup,
    WeightsVersion,
    WorkerStatus,
)
from lpo_ray.rollout.conversations import ConversationRollout
from lpo_ray.rollout.rewards import cases_of, given_verdicts, scores_of
from lpo_ray.rollout.transformers_engine import TransformersEngine
from lpo_ray.run import settings
from lpo_ray.run.spec import RunSpec
from lpo_ray.telemetry.monitor.process_state import describe, this_process
from lpo_ray.verifiers.calling.call import verify_sum
from lpo_ray.verifiers.calling.overlong import Overlong
from lpo_ray.verifiers.sandbox.limits import Limits


class InprocessVerifier:
    """Verifier that calls the function directly. No deadline: one that hangs can be looked at in a debugger."""

    def __init__(self, tokenizer: Tokenizer, overlong: Overlong, sandbox: Limits) -> None:
        self._tokenizer, self._overlong, self._sandbox = tokenizer, overlong, sandbox

    async def score(self, group: PromptGroup) -> ScoredGroup:
        """Judge the group's responses, one after the other. Raises GroupLost."""
        verdicts = given_verdicts(group)
        if verdicts is None:
            verdicts = verify_sum(group.prompt.verifier, cases_of(group, self._tokenizer, self._sandbox))
        return ScoredGroup(group, *scores_of(group, verdicts, self._overlong))


class InprocessTargetBuilder:
    """Target builder in this process."""

    def __init__(self, rule: StepSchedule[TargetRule]) -> None:
        self._rule = rule

    async def build(self, groups: Sequence[ScoredGroup], anchor: Anchor, step: int) -> list[TargetGroup]:
        """Build the targets of a step's groups."""
        return build_targets(groups, anchor, self._rule.at(step))


class InprocessTransport:
    """Transport that copies the learner's weights into the engine's model, proved by digest and probe as on Ray."""

    def __init__(self, learner: InprocessLearner, engine: TransformersEngine, proof: ProofLimits) -> None:
        self._learner, self._engine, self._proof = learner, engine, proof

    async def publish(self, step: int) -> Publication:
        """Copy and prove the weights of ``step``. Raises WeightsNotProved."""
        started = time.monotonic()
        version = WeightsVersion(step, await self._learner.digest())
        weights = self._learner.weights()
        before = self._answer()
        self._engine.load(weights, step)
        expected = await self._learner.logprobs([as_bundles(self._proof.probe)], 1.0)
        served = self._answer()
        agreement = compare(as_answered(expected), served)
        changed = largest_difference(before, served) if step == 0 else 0.0  # which is the folder that it has loaded
        excess = self._proof.excess(agreement) or ((changed, 0.0, "as it was loaded") if changed else None)
        if excess:
            difference, limit, which = excess
            why = f"its log-probs of the probe differ ({which})"
            raise WeightsNotProved("the in-process engine", str(version), difference, limit, why)
        self._proof.measured([agreement])
        worker = WorkerStatus("the in-process engine", "serving", version, 0, "")
        num_bytes = sum(tensor.nbytes for tensor in weights.values())
        seconds, figures = time.monotonic() - started, self._proof.figures(agreement)
        return Publication(version, num_bytes, seconds, (worker,), agreement.largest, {}, figures)

    def _answer(self) -> list[FloatArray]:
        return as_answered([self._engine.logprobs(sequence) for sequence in self._proof.probe])


@dataclass(frozen=True, slots=True)
class InprocessConversations:
    """Environments of conversations, and the room that an engine has for one. They have processes of
    their own here, too.
    """

    environments: HostedEnvironments
    most_tokens: int

    def with_engine(self, engine: TurnEngine) -> RolloutEngine:
        """Conduct conversations with ``engine``."""
        return ConversationRollout(engine, self.environments, self.most_tokens)


@dataclass(frozen=True, slots=True)
class InprocessComponents:
    """The five components of a run in this process."""

    engine: TransformersEngine
    verifier: InprocessVerifier
    target_builder: InprocessTargetBuilder
    learner: InprocessLearner
    transport: InprocessTransport
    conversations: InprocessConversations | None = None
    """None: a response has one turn"""

    @property
    def rollout(self) -> RolloutEngine:
        """The engine, or what conducts conversations with it."""
        return self.engine if self.conversations is None else self.conversations.with_engine(self.engine)

    def lend(self) -> None:
        """Lend nothing: there is but one engine."""

    def busy(self, stage: str) -> list[BusyWorker]:
        """Name this process, whatever the stage."""
        return [BusyWorker("this process", stage, None, this_process())]

    def silence_of(self, key: Key) -> float:
        """Return none: what holds a group here holds the event loop, too."""
        return 0.0

    async def inspect(self, process: Process) -> str:
        """Describe what ``process`` is doing."""
        return await asyncio.to_thread(describe, process)

    async def scale(self, role: str, count: int) -> str:
        """Refuse: there are no workers here. Raises ConfigError."""
        raise ConfigError(
            f"{role}={count} with cluster.kind=inprocess, which has no workers; expected cluster.kind=ray"
        )

    async def close(self) -> None:
        """End the processes of environments; there are no others."""
        if self.conversations is not None:
            await self.conversations.environments.close()


def build_inprocess(spec: RunSpec, model_path: str) -> InprocessComponents:
    """Build all components of a run around the model in ``model_path``."""
    learner = build_learner(spec, model_path)
    engine, verifier = build_engine(spec, model_path)
    transport = InprocessTransport(learner, engine, settings.proof_limits(spec, model_path, learner.weights()))
    target_builder = InprocessTargetBuilder(settings.target_rules(spec))
    conversations = build_conversations(spec, model_path)
    return InprocessComponents(engine, verifier, target_builder, learner, transport, conversations)


@contextlib.asynccontextmanager
async def open_engine(spec: RunSpec, model_path: str) -> AsyncIterator[tuple[RolloutEngine, InprocessVerifier]]:
    """Build what evaluates, ended with the context: the engine, or what conducts conversations with it."""
    engine, verifier = build_engine(spec, model_path)
    conversations = build_conversations(spec, model_path)
    if conversations is None:
        yield engine, verifier
        return
    try:
        yield conversations.with_engine(engine), verifier
    finally:
        await conversations.environments.close()


def build_conversations(spec: RunSpec, model_path: str) -> InprocessConversations | None:
    """Build what conversations need beside an engine; None where a response has one turn."""
    if not spec.has_turns:
        return None
    tokenizer = spec.tokenizer(model_path)
    environments = HostedEnvironments(settings.environment_settings(spec), tokenizer, spec.encoder(tokenizer))
    return InprocessConversations(environments, spec.max_model_len)


def build_engine(spec: RunSpec, model_path: str) -> tuple[TransformersEngine, InprocessVerifier]:
    """Build the engine, with the weights of the model's folder as version 0, and the verifier of what it samples."""
    config, tokenizer = spec.config, spec.tokenizer(model_path)
    model = load_policy(model_path, config.model.dtype, trust_remote_code=config.model.trust_remote_code)
    _with_adapter(model, settings.adapter_settings(config))
    ends = end_tokens(model, tokenizer.eos_token_id)
    engine = TransformersEngine(model, ends, tokenizer.pad_token_id, config.rollout.max_num_seqs)
    return engine, InprocessVerifier(tokenizer, settings.overlong(spec), settings.sandbox(spec))


def _with_adapter(model: PreTrainedModel, adapter: AdapterSettings | None) -> None:
    if adapter is not None:
        from lpo_ray.policy.lora_layers import inject

        inject(model, adapter)


def build_learner(spec: RunSpec, model_path: str) -> InprocessLearner:
    """Build the learner alone."""
    made = settings.learner_settings(spec, model_path)
    share, trust = made.packing.share_prompt, made.trust_remote_code
    model = load_policy(made.model_path, made.dtype, trust_remote_code=trust)
    _with_adapter(model, made.adapter)
    if made.gradient_checkpointing:
        enable_checkpointing(model)
    policy = TorchPolicy(model, made.optimiser, attention=made.attention, share_prompt=share)
    check_numbers(policy, model)
    reference = None
    if made.objective.at(0).reference_kl and made.reference_is_base:
        from lpo_ray.policy.lora_layers import BaseScorer

        reference = BaseScorer(policy, model)
    elif made.objective.at(0).reference_kl:
        frozen = load_policy(made.reference_path, made.dtype, trust_remote_code=trust)
        reference = TorchScorer(frozen, attention=made.attention, share_prompt=share)
        check_numbers(reference, frozen)
    tokenizer = Tokenizer.load(made.model_path, trust_remote_code=trust)
    return InprocessLearner(policy, tokenizer, made.objective, made.packing, reference, made.adapter)
