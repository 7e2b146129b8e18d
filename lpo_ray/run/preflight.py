"""What can be wrong with a valid configuration on this machine: disk, data, memory. Each check raises ConfigError."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil
from omegaconf import OmegaConf

from lpo_ray.common.plugins import UnknownName
from lpo_ray.config.load import dump_config
from lpo_ray.config.schema import ClusterKind, Config, PipelineConfig, Resume, TaskConfig
from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import PromptSource
from lpo_ray.verifiers.calling.call import judge_named
from lpo_ray.verifiers.calling.weighted_sum import is_remote, terms

RESUMED_AS_BEGUN = ("run.seed", "model", "task", "sampling", "pipeline.groups_per_step")
"""what a resumed run may not change: the ledger's prompts and the checkpoint's weights were made with it"""


def check_context(max_tokens: int, context: int) -> None:
    """A response must leave room for a prompt."""
    if max_tokens >= context:
        raise ConfigError(
            f"sampling.max_tokens is {max_tokens}, but the model has {context} positions for prompt "
            f"and response together; expected at most {context - 1}"
        )


def check_verifier(verifier: str, cluster: ClusterKind) -> None:
    """Each of its sum is in the table or can be imported, and is a function that can be asked; or is a service."""
    for name in (term.name for term in terms(verifier)):
        if is_remote(name):
            if cluster is ClusterKind.inprocess:
                raise ConfigError(f"task.verifier has {name} with cluster.kind=inprocess; expected cluster.kind=ray")
            continue
        try:
            judge_named(name)
        except UnknownName as error:
            raise ConfigError(str(error)) from error
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise ConfigError(f"task.verifier={name} failed while it was made ready: {what}") from error


def check_training_data(task: TaskConfig) -> None:
    """Files of which there is one for the evaluation have one for training too."""
    if task.heldout_path is not None and task.path is None:
        raise ConfigError(
            f"task.path is null with task.heldout_path={task.heldout_path}; expected a file to train on: only "
            "lpo-ray evaluate does without"
        )


def check_data(source: PromptSource, num_heldout: int, *, for_training: bool) -> None:
    """A training prompt can be had, and as many held-out ones as an evaluation takes."""
    if for_training:
        source.train(0)
    if num_heldout:
        source.heldout(num_heldout)


def check_run_folder(folder: Path, config: Config) -> None:
    """It can be made, or goes on as it was begun."""
    if folder.exists() and any(folder.iterdir()) and config.run.resume is Resume.never:
        raise ConfigError(
            f"run folder {folder} exists and is not empty; take another run.name, continue it with run.resume=auto, "
            "or remove it"
        )
    if (folder / "config.yaml").exists():
        _check_resume(folder, config)
    parent = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"run folder {folder} cannot be made: {parent} is not a writable folder; set run.dir")


def _check_resume(folder: Path, config: Config) -> None:
    stored = OmegaConf.load(folder / "config.yaml")
    wanted = OmegaConf.create(dump_config(config))
    for key in RESUMED_AS_BEGUN:
        begun, now = OmegaConf.select(stored, key), OmegaConf.select(wanted, key)
        if begun != now:
            raise ConfigError(
                f"run folder {folder} was begun with {key}={begun}, now it is {now}; a run is resumed with the "
                "values it was begun with: set it back, or take another run.name"
            )


def check_memory(config: Config) -> None:
    """Engines on this machine's CPUs have room for their KV caches."""
    if config.cluster.kind is not ClusterKind.ray or config.cluster.address or config.rollout.gpus_per_worker:
        return
    needed = config.rollout.num_workers * config.rollout.kv_cache_gib + config.cluster.object_store_gib
    available = psutil.virtual_memory().available / 2**30
    if needed > available:
        raise ConfigError(
            f"the engines' KV caches and the object store need {needed:.1f} GiB, but {available:.1f} GiB of memory are "
            "free on this machine; lower rollout.kv_cache_gib, rollout.num_workers or cluster.object_store_gib"
        )


def check_room(pipeline: PipelineConfig, largest_group: int) -> None:
    """The driver may hold the groups of a step, of ``largest_group`` bytes each at most."""
    groups = pipeline.groups_per_step + pipeline.oversample_groups
    needed = groups * largest_group / 2**30
    if needed > pipeline.max_gib:
        raise ConfigError(
            f"pipeline.max_gib is {pipeline.max_gib:g}, but the {groups} groups of one step can have {needed:.2f} GiB; "
            f"expected room for a step at least: set pipeline.max_gib={math.ceil(needed * 100) / 100:g}, or lower "
            "pipeline.groups_per_step or sampling.max_tokens"
        )
