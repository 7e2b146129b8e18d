"""From a configuration to the values of a run: every derived number. What can be wrong with them is in ``checks.py``.

``make_spec`` starts nothing and writes nothing, so ``--dry-run`` and ``train`` see the same numbers and errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import OmegaConf

from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.config.load import dump_config
from lpo_ray.config.schema import Behaviour, ClipCentre, ClusterKind, Config, EqualRewards
from lpo_ray.config.validate import warnings
from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import PromptSource
from lpo_ray.learner.lr_schedule import learning_rates
from lpo_ray.learner.packing import Packing
from lpo_ray.learner.settings import GridPoint, LearnerSettings, Objective, OptimiserSettings
from lpo_ray.learner.targets import StaleRule, TargetRule
from lpo_ray.objective import UNANCHORED
from lpo_ray.policy.loading import context_length
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import Sampling
from lpo_ray.rollout.autoscale import AutoscaleRule
from lpo_ray.rollout.pool import PoolSettings
from lpo_ray.run import preflight as checks
from lpo_ray.tasks import base_policy as warmup
from lpo_ray.tasks.sources.source import PromptEncoder
from lpo_ray.tasks.table import check_task, task_named, verifier_of
from lpo_ray.tasks.task import SourceContext
from lpo_ray.telemetry.trackers import tracker_named
from lpo_ray.training.checkpoint import CheckpointRules
from lpo_ray.training.group_selection import SelectionSettings
from lpo_ray.training.loop import BatchSettings, LoopSettings
from lpo_ray.training.measurement import MeasureRule
from lpo_ray.training.sample_lane import SampleSettings
from lpo_ray.verifiers.calling.overlong import Overlong
from lpo_ray.verifiers.sandbox.limits import Limits

BYTES_PER_TOKEN = 20
"""of a response: token id, log-prob, version"""
DECIDES_A_STEP = (
    "objective", "learner", "model", "pipeline.updates_per_step", "pipeline.tokens_per_micro_batch",
    "pipeline.share_prompt", "rollout.dtype", "run.steps",
)  # fmt: skip
"""what the weights after a step depend on, beside its groups"""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A checked configuration and what follows from it."""

    config: Config
    run_dir: Path
    model_path: str | None
    """null: the tiny base policy, built when the run starts"""
    context: int
    """tokens of prompt and response together"""
    verifier: str
    tolerance: float
    """of the weight proof, in log-prob"""
    checked: PromptSource | None = field(default=None, repr=False)
    """the prompts, where they were read to be checked: a large file is read once"""

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for a response."""
        return self.context - self.config.sampling.max_tokens

    def numbers(self) -> dict[str, int | float | str]:
        """Every derived number, for --dry-run."""
        config = self.config
        pipeline, group_size = config.pipeline, config.sampling.group_size
        per_update = pipeline.groups_per_step // pipeline.updates_per_step
        return {
            "run folder": str(self.run_dir),
            "model": self.model_path or "the tiny base policy (built on first use)",
            "context (tokens)": self.context,
            "longest prompt (tokens)": self.max_prompt_tokens,
            "verifier": self.verifier,
            "responses per step": pipeline.groups_per_step * group_size,
            "groups per update": per_update,
            "groups per update and rank": per_update / self.packing().world_size,
            "responses per update": per_update * group_size,
            "optimiser updates in the run": config.run.steps * pipeline.updates_per_step,
            "prompts in the run": config.run.steps * pipeline.groups_per_step,
            "groups in flight at most": self.capacity,
            "memory for them at most (MiB)": round(self.capacity * self.largest_group / 2**20, 1),
            "response tokens per step at most": pipeline.groups_per_step * group_size * config.sampling.max_tokens,
            "evaluation responses": config.evaluation.num_prompts * config.evaluation.samples_per_prompt,
            "learning rate, first step": self.learning_rate(0),
            "learning rate, last step": self.learning_rate(config.run.steps - 1),
            "weight proof tolerance (log-prob)": self.tolerance,
            "processes": self.num_processes,
            **({} if config.rollout.gpus_per_worker else {"engine KV cache (GiB, all workers)": self.kv_cache_gib}),
        }

    @property
    def kv_cache_gib(self) -> float:
        """Of all engines on CPU; on a GPU each takes what gpu_memory_utilization leaves."""
        return self.config.rollout.num_workers * self.config.rollout.kv_cache_gib

    @property
    def num_processes(self) -> int:
        """Actors and verifier processes; 1 without Ray."""
        config = self.config
        if config.cluster.kind is ClusterKind.inprocess:
            return 1
        return config.rollout.num_workers + config.learner.world_size + config.verifier.num_processes + 2

    @property
    def max_in_flight(self) -> int:
        """Evaluation prompts on their way at once: enough to keep every engine full twice over."""
        return self.config.rollout.num_workers * self.max_in_flight_of_one

    @property
    def max_in_flight_of_one(self) -> int:
        """The same, of one engine."""
        return max(1, 2 * self.config.rollout.max_num_seqs // self.config.evaluation.samples_per_prompt)

    @property
    def lends_for_evaluation(self) -> bool:
        """Whether a run evaluates on an engine lent for it; not if a checkpoint's score may be the evaluation's,
        which is made before it then.
        """
        return self.config.evaluation.lend_worker and self.config.checkpoint.best is None

    def overlong(self) -> Overlong:
        """What responses lose for their length."""
        shaping = self.config.verifier.overlong
        return Overlong(self.config.sampling.max_tokens, shaping.buffer_tokens, shaping.penalty)

    def sandbox(self) -> Limits:
        """What a program may use that a verifier runs."""
        verifier = self.config.verifier
        sandbox = verifier.sandbox
        seconds = verifier.deadline_seconds / 2 if sandbox.seconds is None else sandbox.seconds
        start_seconds = (verifier.deadline_seconds - seconds) / 2
        return Limits(
            sandbox.kind.value, seconds, sandbox.memory_mib, sandbox.processes, sandbox.files_mib,
            sandbox.output_kib, start_seconds, sandbox.total_memory_mib or 2 * sandbox.memory_mib,
        )  # fmt: skip

    def learning_rate(self, step: int) -> float:
        """Of ``step``, counted from 0."""
        return self.learning_rates()(step)

    def learning_rates(self) -> Callable[[int], float]:
        """The schedule."""
        learner = self.config.learner
        return learning_rates(
            learner.lr_schedule, learner.lr, steps=self.config.run.steps, warmup_steps=learner.warmup_steps,
            arguments=learner.lr_schedule_kwargs,
        )  # fmt: skip

    def packing(self) -> Packing:
        """How groups become micro-batches."""
        pipeline, world_size = self.config.pipeline, self.config.learner.world_size
        if self.config.cluster.kind is ClusterKind.inprocess:
            world_size = 1
        return Packing(world_size, pipeline.tokens_per_micro_batch, pipeline.share_prompt)

    def learner_settings(self, model_path: str) -> LearnerSettings:
        """How the learner is built around the model in ``model_path``."""
        learner, objective = self.config.learner, self.config.objective
        return LearnerSettings(
            model_path=model_path,
            dtype=self.config.model.dtype,
            objective=self.objective(),
            optimiser=self.optimiser(),
            packing=self.packing(),
            attention=learner.attention.value,
            gradient_checkpointing=learner.gradient_checkpointing,
            reference_path=objective.reference_path or model_path,
            threads=learner.threads,
            zero=dict(learner.zero),
            trust_remote_code=self.config.model.trust_remote_code,
        )

    def tokenizer(self, model_path: str) -> Tokenizer:
        """Of the model in ``model_path``. Raises ConfigError."""
        return Tokenizer.load(model_path, trust_remote_code=self.config.model.trust_remote_code)

    def sampling(self) -> Sampling:
        """How training responses are drawn."""
        s = self.config.sampling
        return Sampling(s.group_size, s.temperature, s.max_tokens, self.config.run.seed, s.top_p, s.top_k, s.min_p)

    def evaluation_sampling(self) -> Sampling:
        """How held-out responses are drawn: the whole distribution, at the evaluation's temperature."""
        evaluation = self.config.evaluation
        return Sampling(
            evaluation.samples_per_prompt,
            evaluation.temperature,
            self.config.sampling.max_tokens,
            self.config.run.seed,
        )

    def points(self) -> StepSchedule[GridPoint]:
        """The points of the grid that the run goes through."""
        objective = self.config.objective
        point = GridPoint(objective.divergence, objective.target_temperature, objective.temperature_scale)
        changes = [(0, point)]
        for change in objective.schedule:
            named = {name: getattr(change, name) for name in GridPoint._fields}
            point = point._replace(**{name: value for name, value in named.items() if value is not None})
            changes.append((change.from_step, point))
        return StepSchedule(tuple(changes))

    def objective(self) -> StepSchedule[Objective]:
        """For the learner."""
        return StepSchedule(tuple((step, self._objective(point.divergence)) for step, point in self.points().changes))

    def _objective(self, divergence: str) -> Objective:
        objective = self.config.objective
        return Objective(
            divergence=divergence,
            token_clip=objective.token_clip.kind,
            clip_low=objective.token_clip.low,
            clip_high=objective.token_clip.high,
            length_norm=objective.length_norm.value,
            sampling_temperature=self.config.sampling.temperature,
            behaviour_from_engine=self.from_engine,
            reference_kl=objective.reference_kl,
            clip_around_anchor=objective.token_clip.around is ClipCentre.anchor,
            importance_cap=objective.importance_cap,
        )

    def target_rule(self) -> StepSchedule[TargetRule]:
        """How targets are built."""
        return StepSchedule(tuple((step, self._target_rule(point)) for step, point in self.points().changes))

    def _target_rule(self, point: GridPoint) -> TargetRule:
        objective = self.config.objective
        return TargetRule(
            point.target_temperature,
            objective.ddof,
            objective.temperature_floor,
            anchored=point.divergence not in UNANCHORED,
            stale=self.stale_rule(),
            scale=point.temperature_scale,
        )

    def stale_rule(self) -> StaleRule:
        """What is done with groups that have drifted."""
        stale = self.config.objective.stale
        return StaleRule(stale.policy.value, stale.min_ess, stale.max_drift)

    def optimiser(self) -> OptimiserSettings:
        """AdamW."""
        learner = self.config.learner
        return OptimiserSettings((learner.betas[0], learner.betas[1]), learner.weight_decay, learner.gradient_clip)

    @property
    def from_engine(self) -> bool:
        """Whether the engine's own log-probs stand for the behaviour."""
        return self.config.objective.behaviour is Behaviour.engine

    @property
    def largest_group(self) -> int:
        """Bytes that a group can have at most."""
        sampling = self.config.sampling
        return BYTES_PER_TOKEN * sampling.group_size * sampling.max_tokens + 8 * self.context

    @property
    def capacity(self) -> int:
        """Groups that may be on their way or waiting to be trained."""
        pipeline = self.config.pipeline
        return (pipeline.groups_per_step + pipeline.oversample_groups) * (pipeline.max_staleness + 1)

    def restart_rule(self) -> RestartRule:
        """How often what dies is started again."""
        rule = self.config.supervision
        return RestartRule(rule.max_restarts, rule.window_seconds, rule.backoff_seconds)

    def autoscale_rule(self) -> AutoscaleRule:
        """How the number of rollout workers follows who waits for whom."""
        rule = self.config.rollout.autoscale
        return AutoscaleRule(rule.min, rule.max, rule.target_learner_wait)

    def pool_settings(self) -> PoolSettings:
        """The rollout pool's values. A worker is given twice what it decodes at once, so that it never runs dry."""
        rollout = self.config.rollout
        slots = 2 * rollout.max_num_seqs
        return PoolSettings(rollout.deadline_seconds, rollout.drain_seconds, slots, self.restart_rule())

    def is_evaluated(self, step: int) -> bool:
        """Whether the policy after ``step`` is evaluated before the run goes on."""
        every = self.config.evaluation.every
        return step == 0 or (every > 0 and step % every == 0)

    def learns_as_begun(self) -> bool:
        """Whether the run, if it was begun before, made its steps as this plan would."""
        path = self.run_dir / "config.yaml"
        if not path.exists():
            return True
        stored, wanted = OmegaConf.load(path), OmegaConf.create(dump_config(self.config))
        return all(OmegaConf.select(stored, key) == OmegaConf.select(wanted, key) for key in DECIDES_A_STEP)

    def batch_settings(self) -> BatchSettings:
        """How a step's groups become a batch."""
        config = self.config
        return BatchSettings(self.packing(), config.pipeline.updates_per_step, self.learning_rates(), config.run.seed)

    def sample_settings(self) -> SampleSettings:
        """The sample lane's values."""
        pipeline = self.config.pipeline
        return SampleSettings(
            sampling=self.sampling(),
            max_attempts=pipeline.max_attempts,
            lease_seconds=pipeline.lease_seconds,
            capacity=self.capacity,
            max_bytes=int(pipeline.max_gib * 2**30),
            largest_group=self.largest_group,
        )

    def selection_settings(self) -> SelectionSettings:
        """What a step is made of."""
        pipeline = self.config.pipeline
        refill = pipeline.groups_per_step if pipeline.refill_groups is None else pipeline.refill_groups
        return SelectionSettings(
            groups_per_step=pipeline.groups_per_step,
            max_staleness=pipeline.max_staleness,
            drop_equal_rewards=pipeline.equal_rewards is EqualRewards.drop,
            stale=self.stale_rule(),
            refill_groups=refill,
            oversample_groups=pipeline.oversample_groups,
            reused_groups_per_step=pipeline.reused_groups_per_step,
            behaviour_from_engine=self.from_engine,
            seed=self.config.run.seed,
        )

    def loop_settings(self) -> LoopSettings:
        """The loop's own values."""
        config = self.config
        return LoopSettings(
            steps=config.run.steps,
            sample=self.sample_settings(),
            assembly=self.selection_settings(),
            batch=self.batch_settings(),
            checkpoints=CheckpointRules(
                self.run_dir / "checkpoints", config.checkpoint.every, config.checkpoint.keep, config.checkpoint.best
            ),
            max_skipped_updates=config.learner.max_skipped_updates,
            evaluate_every=config.evaluation.every,
            measure=self.measure_rule(),
        )

    def measure_rule(self) -> MeasureRule:
        """Which groups are scored again after a step."""
        config = self.config
        return MeasureRule(
            config.telemetry.measured_groups,
            config.pipeline.tokens_per_micro_batch,
            config.sampling.temperature,
            config.objective.length_norm.value,
            self.from_engine,
        )

    def source(self, tokenizer: Tokenizer) -> PromptSource:
        """Prompts of the task. Raises DataError when the data cannot be used."""
        if self.checked is not None:
            return self.checked
        task = self.config.task
        encoder = PromptEncoder(tokenizer, task.template, self.max_prompt_tokens)
        return task_named(task.name).make(task, SourceContext(self.config.run.seed, self.verifier, encoder))


def make_spec(config: Config, *, for_training: bool = True) -> RunSpec:
    """Check everything that can be checked without starting a process. Raises ConfigError."""
    spec = data_spec(config)
    checks.check_verifier(spec.verifier, config.cluster.kind)
    spec.learning_rates()
    _check_reference(config)
    _check_trackers(config.telemetry.trackers)
    if for_training:
        checks.check_training_data(config.task)
        checks.check_run_folder(spec.run_dir, config)
    checks.check_memory(config)
    checks.check_room(config.pipeline, spec.largest_group)
    if spec.model_path is None:
        return spec
    source = spec.source(spec.tokenizer(spec.model_path))
    checks.check_data(source, config.evaluation.num_prompts, for_training=for_training)
    return replace(spec, checked=source)


def data_spec(config: Config) -> RunSpec:
    """A plan of which only what decides the prompts has been checked: model, task and lengths. Raises ConfigError."""
    path, trust = config.model.path, config.model.trust_remote_code
    context = warmup.CONTEXT_LENGTH if path is None else context_length(path, trust_remote_code=trust)
    checks.check_context(config.sampling.max_tokens, context)
    check_task(config.task, config.evaluation.num_prompts)
    return outline(config, context)


def outline(config: Config, context: int) -> RunSpec:
    """The values of a run with a model of ``context`` positions, without a look at disk or hardware. Raises ConfigError
    when the task has no verifier.
    """
    tolerance = config.transport.tolerance
    if tolerance is None:
        exact = config.model.dtype == config.rollout.dtype == "float32"
        tolerance = 1e-3 if exact else 0.5
    return RunSpec(
        config, Path(config.run.dir) / config.run.name, config.model.path, context, verifier_of(config.task), tolerance
    )


def _check_reference(config: Config) -> None:
    path = config.objective.reference_path
    if config.objective.reference_kl and path is not None:
        context_length(path, trust_remote_code=config.model.trust_remote_code)


def _check_trackers(names: Sequence[str]) -> None:
    for name in names:
        tracker_named(name)
        if names.count(name) > 1:
            raise ConfigError(f"telemetry.trackers is {list(names)}; expected {name!r} once")


def build_model(spec: RunSpec, on_progress: warmup.Progress | None = None) -> str:
    """The folder of the model to train: the configured one, or the tiny base policy, built and cached on first use."""
    if spec.model_path is not None:
        return spec.model_path
    recipe = spec.config.model.warmup
    cache = recipe.cache_dir or warmup.default_cache_dir()
    settings = warmup.Recipe(recipe.seed, recipe.steps, recipe.batch_size, recipe.lr, tuple(spec.config.task.counts))
    return str(warmup.cached_base_policy(Path(cache), settings, on_progress))


def render(spec: RunSpec) -> str:
    """The derived numbers as aligned text, and what may not be meant."""
    width = max(len(name) for name in spec.numbers())
    lines = [f"{name:<{width}}  {value}" for name, value in spec.numbers().items()]
    return "\n".join([*lines, *(f"Warning: {text}" for text in warnings(spec.config))])
