"""From a configuration to the spec of a run: what follows from it and was checked.

``make_spec`` starts no component and writes nothing, so ``--dry-run`` and ``train`` see the same values and errors.
``settings.py`` makes each role's settings from a spec.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lpo_ray.common.home import default_cache_dir
from lpo_ray.config.cautions import cautions
from lpo_ray.config.conversations import check_conversations, has_agent, is_conversation, most_turns
from lpo_ray.config.lora import adapter_settings
from lpo_ray.config.schema import ClusterKind, Config
from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import PromptSource
from lpo_ray.learner.lr_schedule import learning_rates
from lpo_ray.policy.loading import check_model, context_length, read_config
from lpo_ray.policy.saving import repairs
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.run import preflight
from lpo_ray.run.day import begun_on, dated
from lpo_ray.tasks import base_policy
from lpo_ray.tasks.dataset import DatasetSource
from lpo_ray.tasks.prompt_form import form_of
from lpo_ray.tasks.sources.source import PromptEncoder
from lpo_ray.tasks.table import check_task, task_named, verifier_of, with_environment
from lpo_ray.tasks.task import SourceContext
from lpo_ray.tasks.warm_starts import WARM_STARTS
from lpo_ray.telemetry.metrics import SCORES
from lpo_ray.telemetry.trackers import tracker_named

logger = logging.getLogger(__name__)
BYTES_PER_TOKEN = 20
"""of a response, that was sampled: token id, log-prob, version"""
BYTES_IN_SEGMENT = 9
"""of a conversation's token beside these, whoever wrote it: token id, whether it was sampled"""
ROUND = 64
"""tokens; a longest sequence of an engine is a multiple of it, and so not shorter than the probe of its weights"""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Checked configuration of a run and what was derived from it. Composition reads it; roles are given values."""

    config: Config
    run_dir: Path
    model_path: str | None
    """null: the tiny base policy, built when the run starts"""
    context: int
    """tokens that prompt and response may have together, all that a conversation consists of"""
    verifier: str
    stop_token_ids: tuple[int, ...] = ()
    """tokens that end a response, beside the model's own end tokens"""
    end_of_turn: str = ""
    """the one of them that the chat template ends the assistant's turn with, as text; empty: none, or it is the model's
    end token
    """
    checked: PromptSource | None = field(default=None, repr=False)
    """the prompts, where they were read to be checked: a large file is read once"""
    longest_prompt: int | None = None
    """tokens of the longest prompt of the data; null: any that leaves room for a response"""

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt that leaves room for a response, or for the first turn of a conversation."""
        return self.longest_response - self.config.sampling.max_tokens

    @property
    def longest_response(self) -> int:
        """Tokens of prompt and response at which a response is cut."""
        limit = self.config.sampling.max_conversation_tokens
        return self.context if limit is None or not self.has_turns else min(limit, self.context)

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and response that an engine has room for: those of the data, rounded up to ROUND. What an
        environment says is not known before: conversations have what they are given, or the whole context.
        """
        if self.config.rollout.max_model_len is not None:
            return self.context
        longest = self.longest_response
        if self.longest_prompt is not None and not self.has_turns:
            longest = self.longest_prompt + self.config.sampling.max_tokens
        return min(self.context, -(-longest // ROUND) * ROUND)

    @property
    def has_turns(self) -> bool:
        """Whether responses are conversations."""
        return is_conversation(self.config.task)

    @property
    def has_agent(self) -> bool:
        """Whether responses are sessions of an agent."""
        return has_agent(self.config.task)

    def with_room_for(self, tokens: int) -> RunSpec:
        """Return the same run with engines that have room for ``tokens`` of prompt and response."""
        return replace(self, longest_prompt=tokens - self.config.sampling.max_tokens)

    @property
    def capacity(self) -> int:
        """Number of groups that may be in flight or waiting to be trained."""
        pipeline = self.config.pipeline
        return (pipeline.groups_per_step + pipeline.oversample_groups) * (pipeline.max_staleness + 1)

    @property
    def largest_group(self) -> int:
        """Bytes of the largest group there can be: of conversations, one whose environment or agent rewrites the
        history behind every turn, so that each is a segment with a context of its own. Tools only add to it.
        """
        config, turns = self.config, most_turns(self.config)
        sampled, in_segments = turns * config.sampling.max_tokens, 0
        if self.has_turns:
            may_rewrite = config.task.environment is not None or self.has_agent
            in_segments = self.longest_response * (turns if may_rewrite else 1)
            sampled = min(sampled, in_segments)
        response = BYTES_PER_TOKEN * sampled + BYTES_IN_SEGMENT * in_segments
        return config.sampling.group_size * response + 8 * self.context

    @property
    def warnings(self) -> list[str]:
        """Warnings to the user about the configuration and the model."""
        return [*cautions(self.config), *([] if self.model_path is None else repairs(self.model_path))]

    @property
    def learning_rate(self) -> Callable[[int], float]:
        """Learning rate of a step, counted from 0."""
        learner = self.config.learner
        return learning_rates(
            learner.lr_schedule, learner.lr, steps=self.config.run.steps, warmup_steps=learner.warmup_steps,
            arguments=learner.lr_schedule_kwargs,
        )  # fmt: skip

    def tokenizer(self, model_path: str) -> Tokenizer:
        """Load the tokenizer of the model in ``model_path``. Raises ConfigError."""
        return Tokenizer.load(model_path, trust_remote_code=self.config.model.trust_remote_code)

    def source(self, tokenizer: Tokenizer) -> PromptSource:
        """Open the task's prompts. Raises DataError when the data cannot be used."""
        return self._source(self.encoder(tokenizer)) if self.checked is None else self.checked

    def encoder(self, tokenizer: Tokenizer) -> PromptEncoder:
        """Make what turns prompts into tokens. Raises DataError when the model's chat template cannot."""
        task = self.config.task
        return PromptEncoder(tokenizer, task.template, self.max_prompt_tokens, form_of(task))

    def ends_with(self, tokenizer: Tokenizer, encoder: PromptEncoder) -> RunSpec:
        """Add the chat template's end of turn to what ends a response: a base model's end token is another. Raises
        ConfigError for stop tokens that the model has not.
        """
        stops = self.config.sampling.stop_token_ids
        if strange := [token for token in stops if token >= len(tokenizer)]:
            raise ConfigError(
                f"sampling.stop_token_ids has {strange[0]}; expected ids below {len(tokenizer)}, the tokenizer's size"
            )
        token = encoder.end_of_turn
        if token is None and encoder.uses_chat_template:
            logger.warning(
                "no special token ends the assistant's turn in the chat template: a response ends at the model's end "
                "tokens and at sampling.stop_token_ids=%s only", list(stops),
            )  # fmt: skip
        if token is None or token == tokenizer.eos_token_id:
            return self
        ids = tuple(dict.fromkeys([*stops, token]))
        return replace(self, stop_token_ids=ids, end_of_turn=f"{tokenizer.show(np.array([token]))} ({token})")

    def _source(self, encoder: PromptEncoder) -> PromptSource:
        task = self.config.task
        return task_named(task.name).make(task, SourceContext(self.config.run.seed, self.verifier, encoder))


def make_spec(config: Config, *, for_training: bool = True) -> RunSpec:
    """Check everything but the run's folder that can be checked without starting a component. Raises ConfigError."""
    spec = data_spec(config)
    config = spec.config
    preflight.check_verifier(spec.verifier, config.cluster.kind)
    preflight.check_sandbox(spec.verifier, config)
    spec.learning_rate(0)  # raises when the schedule cannot be made
    _check_trackers(config.telemetry.trackers)
    _check_best(config.checkpoint.best)
    if for_training:
        preflight.check_training_data(config.task)
        preflight.check_precision(config)
    preflight.check_memory(config)
    preflight.check_room(config.pipeline, spec.largest_group)
    path = spec.model_path
    tokenizer = base_policy.character_tokenizer() if path is None else spec.tokenizer(path)
    _check_models(spec, tokenizer.highest_id, for_training=for_training)
    if path is None:
        return spec
    encoder = spec.encoder(tokenizer)
    source = spec._source(encoder)
    preflight.check_data(source, config.evaluation.num_prompts, for_training=for_training)
    longest = source.longest_prompt if isinstance(source, DatasetSource) else None
    return replace(spec.ends_with(tokenizer, encoder), checked=source, longest_prompt=longest)


def data_spec(config: Config) -> RunSpec:
    """Check only what decides the prompts: model, task, day and lengths. Raises ConfigError."""
    config = dated(config, begun_on(Path(config.run.dir) / config.run.name))
    config = replace(config, task=with_environment(config.task))
    path, trust = config.model.path, config.model.trust_remote_code
    context = base_policy.CONTEXT_LENGTH if path is None else context_length(path, trust_remote_code=trust)
    preflight.check_context(config, _positions(config, context))
    check_task(config.task, config.evaluation.num_prompts)
    return outline(config, context)


def outline(config: Config, context: int) -> RunSpec:
    """Derive the spec of a run with a model of ``context`` positions, without a look at disk or hardware. Raises
    ConfigError when the task has no verifier, or rollout.max_model_len is more than the model has.
    """
    config = replace(config, task=with_environment(config.task))
    check_conversations(config)
    return RunSpec(
        config,
        Path(config.run.dir) / config.run.name,
        config.model.path,
        _positions(config, context),
        verifier_of(config.task),
        tuple(config.sampling.stop_token_ids),
    )


def _positions(config: Config, context: int) -> int:
    limit = config.rollout.max_model_len
    if limit is not None and limit > context:
        raise ConfigError(f"rollout.max_model_len is {limit}, but the model has {context} positions; expected no more")
    return context if limit is None else limit


def _check_models(spec: RunSpec, highest_token: int, *, for_training: bool) -> None:
    """Check that the model, and the reference if there is one, are whole, and know every token and position."""
    objective, trust = spec.config.objective, spec.config.model.trust_remote_code
    if spec.model_path is not None:
        is_vllm = spec.config.cluster.kind is ClusterKind.ray
        check_model(spec.model_path, highest_token, trust_remote_code=trust, to_train=for_training or not is_vllm)
        preflight.check_parts(spec.config.rollout, read_config(spec.model_path, trust_remote_code=trust))
    preflight.check_adapter(spec.config, adapter_settings(spec.config), for_training=for_training)
    path = objective.reference_path
    if not objective.reference_kl or path is None:
        return
    if (positions := context_length(path, trust_remote_code=trust)) < spec.context:
        raise ConfigError(
            f"objective.reference_path is {path!r}, a model of {positions} positions; expected {spec.context} at "
            "least, as the model that is trained has"
        )
    check_model(path, highest_token, trust_remote_code=trust)


def _check_trackers(names: Sequence[str]) -> None:
    for name in names:
        tracker_named(name)
        if names.count(name) > 1:
            raise ConfigError(f"telemetry.trackers is {list(names)}; expected {name!r} once")


def _check_best(name: str | None) -> None:
    if name is None or name in SCORES or name.startswith("pass@"):
        return
    close = difflib.get_close_matches(name, SCORES, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected pass@k or one of {', '.join(sorted(SCORES))}"
    raise ConfigError(f"checkpoint.best is {name!r}, which no step measures; {hint}")


def build_model(spec: RunSpec, on_progress: base_policy.Progress | None = None) -> str:
    """Return the folder of the model to train: the configured one, or the tiny base policy, built on first use."""
    if spec.model_path is not None:
        return spec.model_path
    warmup = spec.config.model.warmup
    cache = warmup.cache_dir or default_cache_dir()
    task = spec.config.task
    form = task.name if task.name in WARM_STARTS else "countdown"
    recipe = base_policy.Recipe(warmup.seed, warmup.steps, warmup.batch_size, warmup.lr, tuple(task.counts), form)
    return str(base_policy.cached_base_policy(Path(cache), recipe, on_progress))
