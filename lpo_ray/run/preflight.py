"""Preflight checks of a valid configuration on this machine: disk, data, memory. Each check raises ConfigError."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import psutil
from omegaconf import OmegaConf

from lpo_ray.common.plugins import UnknownName
from lpo_ray.config.load import dump_config, in_new_names
from lpo_ray.config.schema import ClusterKind, Config, PipelineConfig, Resume, TaskConfig
from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import PromptSource
from lpo_ray.training import checkpoint
from lpo_ray.training.ledger import read_ledger
from lpo_ray.verifiers.calling.call import judge_named
from lpo_ray.verifiers.calling.weighted_sum import is_remote, terms

RESUMED_AS_BEGUN = ("run.seed", "model", "task", "sampling", "pipeline.groups_per_step")
"""what a resumed run may not change: the ledger's prompts and the checkpoint's weights were made with it"""
DECIDES_A_STEP = (
    "objective", "learner", "model", "pipeline.updates_per_step", "pipeline.tokens_per_micro_batch",
    "pipeline.share_prompt", "rollout.dtype", "run.steps",
)  # fmt: skip
"""what the weights after a step depend on, beside its groups"""


def check_context(max_tokens: int, context: int) -> None:
    """Check that a response leaves room for a prompt."""
    if max_tokens >= context:
        raise ConfigError(
            f"sampling.max_tokens is {max_tokens}, but the model has {context} positions for prompt "
            f"and response together; expected at most {context - 1}"
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
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise ConfigError(f"task.verifier={name} failed while it was made ready: {what}") from error


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
        source.train(0)
    if num_heldout:
        source.heldout(num_heldout)


def check_run_folder(folder: Path, config: Config) -> None:
    """Check that the run folder can be created, or resumed with the settings it was created with."""
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


def outlook(folder: Path, config: Config) -> str:
    """Say what ``train`` would do with the run folder: begin, resume after a step, or refuse."""
    try:
        check_run_folder(folder, config)
    except ConfigError as error:
        return f"refuse: {error}"
    if not (folder / "ledger.sqlite").is_file():
        return "begin a new run"
    saved = max(map(checkpoint.step_of, checkpoint.list_checkpoints(folder / "checkpoints")), default=0)
    with read_ledger(folder) as ledger:
        (committed,) = ledger.execute("SELECT max(step) FROM commits").fetchone()
    last = max(saved, committed or 0) if learns_as_begun(folder, config) else saved
    again = f", computing steps {saved + 1} to {last} again from the groups that made them" if last > saved else ""
    return f"resume after step {last} of {config.run.steps}{again}"


def learns_as_begun(folder: Path, config: Config) -> bool:
    """Whether the run in ``folder`` made its steps as ``config`` would make them; true before it is begun."""
    return not (folder / "config.yaml").exists() or not _changed(folder, config, DECIDES_A_STEP)


def _check_resume(folder: Path, config: Config) -> None:
    for key, (begun, now) in _changed(folder, config, RESUMED_AS_BEGUN).items():
        raise ConfigError(
            f"run folder {folder} was begun with {key}={begun}, now it is {now}; a run is resumed with the "
            "values it was begun with: set it back, or take another run.name"
        )


def _changed(folder: Path, config: Config, keys: Sequence[str]) -> dict[str, tuple[object, object]]:
    """Find the ``keys`` whose value is not the one that the run in ``folder`` was begun with: key -> (begun, now)."""
    begun = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    stored = OmegaConf.create(in_new_names(cast("Mapping[str, object]", begun)))
    wanted = OmegaConf.create(dump_config(config))
    values = {key: (OmegaConf.select(stored, key), OmegaConf.select(wanted, key)) for key in keys}
    return {key: (begun, now) for key, (begun, now) in values.items() if begun != now}


def check_memory(config: Config) -> None:
    """Check that engines on this machine's CPUs have room for their KV caches."""
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
    """Check that the driver may hold the groups of a step, of ``largest_group`` bytes each at most."""
    groups = pipeline.groups_per_step + pipeline.oversample_groups
    needed = groups * largest_group / 2**30
    if needed > pipeline.max_gib:
        raise ConfigError(
            f"pipeline.max_gib is {pipeline.max_gib:g}, but the {groups} groups of one step can have {needed:.2f} GiB; "
            f"expected room for a step at least: set pipeline.max_gib={math.ceil(needed * 100) / 100:g}, or lower "
            "pipeline.groups_per_step or sampling.max_tokens"
        )
