"""What can be wrong with a valid configuration on this machine: disk, data, memory. Each check raises ConfigError."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil
from omegaconf import OmegaConf

from lpo_ray.config.load import dump_config
from lpo_ray.config.schema import ClusterKind, Config, PipelineConfig, Resume, TaskConfig
from lpo_ray.data.source import PromptSource
from lpo_ray.errors import ConfigError
from lpo_ray.plugins import UnknownName, resolve
from lpo_ray.verifiers import VERIFIERS

RESUMED_AS_BEGUN = ("run.seed", "model", "task", "sampling", "pipeline.groups_per_step")
"""what a resumed run may not change: the ledger's prompts and the checkpoint's weights were made with it"""


def check_context(max_tokens: int, context: int) -> None:
    """A response must leave room for a prompt."""
    if max_tokens >= context:
        raise ConfigError(
            f"sampling.max_tokens is {max_tokens}, but the model has {context} positions for prompt "
            f"and response together; expected at most {context - 1}"
        )


def check_verifier(name: str) -> None:
    """It is in the table, or can be imported."""
    try:
        resolve(name, VERIFIERS, "task.verifier")
    except UnknownName as error:
        raise ConfigError(str(error)) from error


def check_data(source: PromptSource, num_heldout: int) -> None:
    """A prompt can be had, and as many held-out ones as an evaluation takes."""
    source.train(0)
    if num_heldout:
        source.heldout(num_heldout)


def check_task(task: TaskConfig, num_heldout: int) -> None:
    """A known task, whose files are there."""
    if task.name not in ("countdown", "dataset"):
        raise ConfigError(f"task.name is {task.name!r}; expected countdown or dataset")
    if task.num_train is not None and task.num_train < 1:
        raise ConfigError(f"task.num_train is {task.num_train}; expected 1 or more, or null for all")
    if not task.counts or any(count not in (3, 4) for count in task.counts):
        raise ConfigError(f"task.counts is {task.counts}; expected a list of 3 and 4, as in [3, 4]")
    if task.name == "dataset":
        _check_files(task.path, task.heldout_path, num_heldout)


def _check_files(path: str | None, heldout_path: str | None, num_heldout: int) -> None:
    if path is None:
        raise ConfigError("task.path is null; task.name=dataset needs a .jsonl or .parquet file")
    if heldout_path is None and num_heldout:
        raise ConfigError(
            "task.heldout_path is null, but evaluation.num_prompts is "
            f"{num_heldout}; give a file of held-out prompts, or set evaluation.num_prompts=0"
        )
    for key, value in (("task.path", path), ("task.heldout_path", heldout_path)):
        if value is not None and value.endswith((".jsonl", ".parquet")) and not Path(value).is_file():
            raise ConfigError(f"{key} is {value!r}, which does not exist; expected a .jsonl or .parquet file")


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
