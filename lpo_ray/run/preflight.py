"""Preflight checks of a valid configuration on this machine: data, verifier, memory. Each check raises ConfigError."""

from __future__ import annotations

import math

from transformers import PretrainedConfig

from lpo_ray.common.error_text import error_text
from lpo_ray.common.plugins import UnknownName
from lpo_ray.config.conversations import is_conversation
from lpo_ray.config.engine import indivisible, less_precise
from lpo_ray.config.schema import Behaviour, ClusterKind, Config, PipelineConfig, RolloutConfig, TaskConfig
from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import PromptSource
from lpo_ray.policy.adapter_files import check_folder
from lpo_ray.policy.lora import AdapterSettings
from lpo_ray.run.object_store import kv_cache_bytes, object_store_bytes, room_here
from lpo_ray.tasks.sources.source import first_usable
from lpo_ray.verifiers.calling.call import judge_named
from lpo_ray.verifiers.calling.weighted_sum import is_remote, terms
from lpo_ray.verifiers.sandbox.program import trouble_with, working_kind


def check_context(config: Config, context: int) -> None:
    """Check that a response leaves room for a prompt, and that a conversation has the room that it is given."""
    max_tokens, limit = config.sampling.max_tokens, config.sampling.max_conversation_tokens
    if is_conversation(config.task) and limit is not None and limit > context:
        raise ConfigError(
            f"sampling.max_conversation_tokens is {limit}, but the model has {context} positions (rollout."
            "max_model_len, where it is set); expected no more, or null"
        )
    if max_tokens >= context:
        raise ConfigError(
            f"sampling.max_tokens is {max_tokens}, but the model has {context} positions for prompt "
            f"and response together (rollout.max_model_len, where it is set); expected at most {context - 1}"
        )


def check_parts(rollout: RolloutConfig, model: PretrainedConfig) -> None:
    """Check that vLLM can cut the model into the parts of an engine."""
    text = model.get_text_config()
    heads, layers = getattr(text, "num_attention_heads", None), getattr(text, "num_hidden_layers", None)
    if not isinstance(heads, int) or not isinstance(layers, int):
        return  # a model of another kind, which vLLM judges
    why = indivisible(rollout, heads, getattr(text, "num_key_value_heads", None) or heads, layers)
    if why is not None:
        raise ConfigError(why)


def check_adapter(config: Config, adapter: AdapterSettings | None, *, for_training: bool) -> None:
    """Check that the adapter to begin with is the one that is configured, and what a reference is held against."""
    if adapter is None or adapter.path is None:
        return
    check_folder(adapter)
    if for_training and config.objective.reference_kl and config.objective.reference_path is None:
        raise ConfigError(
            f"objective.reference_kl is {config.objective.reference_kl} with model.lora.path={adapter.path}: the "
            "policy begins with that adapter, which a reference without a second copy has not; expected objective."
            "reference_path, the value of model.path or a folder with the adapter merged into it"
        )


def check_precision(config: Config) -> None:
    """Check that what an engine samples less precisely than the learner computes is corrected for."""
    named, objective = less_precise(config.rollout), config.objective
    if named and objective.behaviour is Behaviour.recomputed and objective.importance_cap is None:
        raise ConfigError(
            f"rollout.engine_args has {named} with objective.behaviour=recomputed: the engine samples from another "
            "distribution than the learner computes, and nothing corrects for it; set objective.behaviour=engine, or "
            "objective.importance_cap"
        )


def check_verifier(verifier: str, cluster: ClusterKind) -> None:
    """Check that each term of ``verifier`` is a service, or a function that can be imported and asked."""
    for name in (term.name for term in terms(verifier)):
        if is_remote(name):
            if cluster is ClusterKind.inprocess:
                raise ConfigError(f"task.verifier has {name} with cluster.kind=inprocess; expected cluster.kind=ray")
            continue
        try:
            judge_named(name)
        except UnknownName as error:
            raise ConfigError(str(error)) from error
        except (Exception, SystemExit) as error:
            what = error_text(error)
            raise ConfigError(f"task.verifier={name} failed while it was made ready: {what}") from error


def check_sandbox(verifier: str, config: Config) -> None:
    """Check that programs can run, and see the installed packages, where ``unit_tests`` or the tool ``python`` runs
    them on this machine.
    """
    is_here = config.cluster.kind is ClusterKind.inprocess or not config.cluster.address
    of_verifier = any(term.name == "unit_tests" for term in terms(verifier))
    if not is_here or not (of_verifier or "python" in config.task.tools):
        return
    kind = config.verifier.sandbox.kind.value
    if (trouble := trouble_with(working_kind(kind))) is not None:
        raise ConfigError(
            f"{'task.verifier has unit_tests' if of_verifier else 'task.tools has python'} with "
            f"verifier.sandbox.kind={kind}, and its sandbox does not work here: {trouble} "
            "(lpo-ray doctor looks at both kinds)"
        )


def check_training_data(task: TaskConfig) -> None:
    """Check that a task with a file for the evaluation has one for training too."""
    if task.heldout_path is not None and task.path is None:
        raise ConfigError(
            f"task.path is null with task.heldout_path={task.heldout_path}; expected a file to train on: only "
            "lpo-ray evaluate does without"
        )


def check_data(source: PromptSource, num_heldout: int, *, for_training: bool) -> None:
    """Check that there is a training prompt, and as many held-out ones as an evaluation takes."""
    if for_training:
        first_usable(source, 1)
    if num_heldout:
        source.heldout(num_heldout)


def check_memory(config: Config) -> None:
    """Check that engines on this machine's CPUs have room for their KV caches."""
    if config.cluster.kind is not ClusterKind.ray or config.cluster.address or config.rollout.gpus_per_worker:
        return
    room = room_here()
    needed = (kv_cache_bytes(config) + object_store_bytes(config, room)) / 2**30
    available = room.available / 2**30
    if needed > available:
        raise ConfigError(
            f"the engines' KV caches and the object store need {needed:.1f} GiB, but {available:.1f} GiB of memory are "
            "free on this machine; lower rollout.kv_cache_gib, rollout.num_workers or cluster.object_store_gib"
        )


def check_room(pipeline: PipelineConfig, largest_group: int) -> None:
    """Check that the driver may hold the groups of a step, of ``largest_group`` bytes each at most."""
    groups = pipeline.groups_per_step + pipeline.oversample_groups
    needed = groups * largest_group / 2**30
    if needed > pipeline.max_gib:
        raise ConfigError(
            f"pipeline.max_gib is {pipeline.max_gib:g}, but the {groups} groups of one step can have {needed:.2f} GiB; "
            f"expected room for a step at least: set pipeline.max_gib={math.ceil(needed * 100) / 100:g}, or lower "
            "pipeline.groups_per_step or sampling.max_tokens"
        )
