"""The five components without Ray: everything in this process, for a debugger and for fast tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.errors import ConfigError, WeightsNotProved
from lpo_ray.learner.settings import LearnerSettings
from lpo_ray.learner.targets import TargetRule, build_targets
from lpo_ray.learner.torch_learner import InprocessLearner, TorchPolicy, TorchScorer
from lpo_ray.policy.loading import load_policy
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.policy.weights_proof import as_bundles, largest_difference, probe_sequences
from lpo_ray.records import (
    Anchor,
    BusyWorker,
    Process,
    PromptGroup,
    Publication,
    ScoredGroup,
    TargetGroup,
    WeightsVersion,
    WorkerStatus,
)
from lpo_ray.rollout.rewards import cases_of, scores_of
from lpo_ray.rollout.transformers_engine import TransformersEngine
from lpo_ray.telemetry.monitor.process_state import describe, this_process
from lpo_ray.verifiers.calling.call import verify_sum
from lpo_ray.verifiers.calling.overlong import Overlong
from lpo_ray.verifiers.sandbox.limits import Limits


class InprocessVerifier:
    """Calls the verifier's function directly. No deadline: a verifier that hangs can be looked at."""

    def __init__(self, tokenizer: Tokenizer, overlong: Overlong, sandbox: Limits) -> None:
        self._tokenizer, self._overlong, self._sandbox = tokenizer, overlong, sandbox

    async def score(self, group: PromptGroup) -> ScoredGroup:
        """See interfaces.Verifier."""
        verdicts = verify_sum(group.prompt.verifier, cases_of(group, self._tokenizer, self._sandbox))
        return ScoredGroup(group, *scores_of(group, verdicts, self._overlong))


class InprocessTargetBuilder:
    """Builds targets here."""

    def __init__(self, rule: StepSchedule[TargetRule]) -> None:
        self._rule = rule

    async def build(self, groups: Sequence[ScoredGroup], anchor: Anchor, step: int) -> list[TargetGroup]:
        """See interfaces.TargetBuilder."""
        return build_targets(groups, anchor, self._rule.at(step))


class InprocessTransport:
    """Copies the learner's weights into the engine's model; the same digest and probe as on Ray prove them."""

    def __init__(self, learner: InprocessLearner, engine: TransformersEngine, context: int, tolerance: float) -> None:
        self._learner, self._engine, self._tolerance = learner, engine, tolerance
        self._probe = probe_sequences(learner.vocabulary, context)

    async def publish(self, step: int) -> Publication:
        """See interfaces.WeightTransport."""
        started = time.monotonic()
        version = WeightsVersion(step, await self._learner.digest())
        weights = self._learner.weights()
        self._engine.load(weights, step)
        expected = await self._learner.logprobs([as_bundles(self._probe)], 1.0)
        difference = largest_difference(expected, [self._engine.logprobs(sequence) for sequence in self._probe])
        if difference > self._tolerance:
            raise WeightsNotProved("the in-process engine", str(version), difference, self._tolerance, "probe differs")
        worker = WorkerStatus("the in-process engine", "serving", version, 0, "")
        num_bytes = sum(tensor.nbytes for tensor in weights.values())
        return Publication(version, num_bytes, time.monotonic() - started, (worker,), difference, {})


@dataclass(frozen=True, slots=True)
class InprocessComponents:
    """See interfaces.Components."""

    rollout: TransformersEngine
    verifier: InprocessVerifier
    target_builder: InprocessTargetBuilder
    learner: InprocessLearner
    transport: InprocessTransport

    def lend(self) -> None:
        """See interfaces.Components. There is but one engine."""

    def busy(self, stage: str) -> list[BusyWorker]:
        """See interfaces.Components. It is always this process."""
        return [BusyWorker("this process", stage, None, this_process())]

    async def inspect(self, process: Process) -> str:
        """See interfaces.Components."""
        return await asyncio.to_thread(describe, process)

    async def scale(self, role: str, count: int) -> str:
        """See interfaces.Components. There are no workers here."""
        raise ConfigError(
            f"{role}={count} with cluster.kind=inprocess, which has no workers; expected cluster.kind=ray"
        )

    async def close(self) -> None:
        """There is nothing to end."""


def build_inprocess(
    settings: LearnerSettings,
    rule: StepSchedule[TargetRule],
    context: int,
    tolerance: float,
    overlong: Overlong | None = None,
    sandbox: Limits | None = None,
    max_num_seqs: int = 256,
) -> InprocessComponents:
    """All components around one model folder."""
    learner = build_learner(settings)
    tokenizer = Tokenizer.load(settings.model_path, trust_remote_code=settings.trust_remote_code)
    engine = build_engine(settings, tokenizer, max_num_seqs)
    transport = InprocessTransport(learner, engine, context, tolerance)
    verifier = InprocessVerifier(tokenizer, overlong or Overlong(context), sandbox or Limits())
    return InprocessComponents(engine, verifier, InprocessTargetBuilder(rule), learner, transport)


def build_engine(settings: LearnerSettings, tokenizer: Tokenizer, max_num_seqs: int) -> TransformersEngine:
    """The engine alone, with the weights of the model's folder as version 0."""
    model = load_policy(settings.model_path, settings.dtype, trust_remote_code=settings.trust_remote_code)
    return TransformersEngine(model, tokenizer.eos_token_id, tokenizer.pad_token_id, max_num_seqs)


def build_learner(settings: LearnerSettings) -> InprocessLearner:
    """The learner alone."""
    share, trust = settings.packing.share_prompt, settings.trust_remote_code
    model = load_policy(settings.model_path, settings.dtype, trust_remote_code=trust)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    policy = TorchPolicy(model, settings.optimiser, attention=settings.attention, share_prompt=share)
    reference = None
    if settings.objective.at(0).reference_kl:
        frozen = load_policy(settings.reference_path, settings.dtype, trust_remote_code=trust)
        reference = TorchScorer(frozen, attention=settings.attention, share_prompt=share)
    tokenizer = Tokenizer.load(settings.model_path, trust_remote_code=trust)
    return InprocessLearner(policy, tokenizer, settings.objective, settings.packing, reference)
