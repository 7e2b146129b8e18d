"""Target of ``lpo-ray evaluate``: one configuration and one folder for each task.

TARGET is a configuration's file, a run's folder (its config.yaml, and the policy of a checkpoint), or a model (folder
or hub name) or a PEFT adapter's folder, which need --task or --config. A suite is a YAML file: ``all`` has sections of
a configuration for all of its tasks, ``tasks`` has for each name the sections task and evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lpo_ray.config.load import Layer, config_of, read_layer
from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError
from lpo_ray.policy.adapter_files import is_adapter, read_settings
from lpo_ray.policy.loading import context_length
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.tasks.table import task_named
from lpo_ray.training import checkpoint

MAX_TOKENS = 1024
"""of a response, where the task recommends nothing; at most half of the model's context"""
OF_A_TASK = ("task", "evaluation")
"""sections that differ among the tasks of a suite, which share model, engines and verifiers"""
OF_A_MODEL = ("template", "chat_template", "chat_template_kwargs", "date", "system_prompt")
"""keys of the section task that say how the model is spoken to, whatever the task"""
NO_RUN = {"run": {"name": "evaluation", "steps": 1}, "pipeline": {"groups_per_step": 2}, "learner": {"world_size": 1}}
"""what a configuration has to say, and an evaluation does not read"""
ANY_KS = {"evaluation": {"ks": [1]}}
"""all k are reported, so those of the configuration need not fit samples_per_prompt"""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Task to evaluate a model on."""

    config: Config
    model: str
    """for people: the checkpoint and its run, or the model's name"""
    name: str
    """of the task"""
    folder: Path
    step: int = 0
    """of the checkpoint; 0: the model is none of a run"""


@dataclass(frozen=True, slots=True)
class _Target:
    layers: list[Layer]
    model: str
    folder: Path
    """without --out"""
    step: int = 0


def requests_of(
    target: str,
    overrides: Sequence[str],
    *,
    step: int | None = None,
    task: str | None = None,
    config: Path | None = None,
    suite: Path | None = None,
    out: Path | None = None,
    any_task: str | None = None,
) -> list[EvaluationRequest]:
    """Make a request for each task of ``suite``, or one. Raises ConfigError before anything is written.

    ``any_task``: stands in where nothing says which, for what asks none of its prompts.
    """
    if task is not None and suite is not None:
        raise ConfigError(f"--task is {task} with --suite {suite}; expected one of both")
    found = _target(target, step, task, config, suite, any_task)
    if suite is None:
        only = config_of([*found.layers, ("evaluate", ANY_KS)], overrides)
        return [EvaluationRequest(only, found.model, only.task.name, out or found.folder, found.step)]
    shared, tasks = _suite(suite)
    folder = out or found.folder
    requests = []
    for name, sections in tasks.items():
        layers = [*_without_task(found.layers), shared, (f"{suite}: {name}", sections), ("evaluate", ANY_KS)]
        requests.append(EvaluationRequest(config_of(layers, overrides), found.model, name, folder / name, found.step))
    return requests


def _target(
    target: str, step: int | None, task: str | None, config: Path | None, suite: Path | None, any_task: str | None
) -> _Target:
    path = Path(target)
    what = task if suite is None else suite.stem
    is_run = (path / "config.yaml").is_file()
    if step is not None and not is_run:
        raise ConfigError(f"--step is {step}, but {target} is no run's folder; expected one with checkpoints")
    if config is not None and (is_run or path.is_file()):
        raise ConfigError(f"--config is {config}, but {target} has a configuration of its own; expected one of both")
    if is_run:
        return _run(path, step, task, what)
    if path.is_file():
        layer = read_layer(path)
        layers = [layer] if task is None else [*_without_task([layer]), ("--task", {"task": {"name": task}})]
        return _Target(layers, path.stem, Path("evaluations") / _name(path.stem, what))
    runs = sorted(other.parent.name for other in path.parent.glob("*/config.yaml"))
    if (
        (path / "config.json").is_file()
        or is_adapter(path)
        or (not path.exists() and not runs and _HUB_NAME.fullmatch(target))
    ):
        return _model(target, task, config, suite, any_task)
    what = (
        "a folder with neither config.yaml nor config.json, nor adapter_config.json" if path.is_dir() else "not there"
    )
    hint = f"; the runs in {path.parent} are {', '.join(runs)}" if runs else ""
    raise ConfigError(
        f"{target} is {what}; expected a configuration (.yaml), a run's folder, a model's or an adapter's folder, "
        f"or a model's name on the hub (ORGANISATION/NAME){hint}"
    )


def _run(path: Path, step: int | None, task: str | None, what: str | None) -> _Target:
    saved = checkpoint.chosen(path, step)
    policy = saved / "policy"
    checkpoint.verify(saved, str(policy))
    layers = [read_layer(path / "config.yaml")]
    if task is not None:
        layers = [*_without_task(layers), ("--task", {"task": {"name": task}})]
    trained = {"path": str(policy)}
    layers.append((str(path), {"model": {"lora": trained} if is_adapter(policy) else trained}))
    return _Target(
        layers,
        f"{path.resolve().name} {saved.name}",
        path / "evaluations" / _name(saved.name, what),
        checkpoint.step_of(saved),
    )


def _model(target: str, task: str | None, config: Path | None, suite: Path | None, any_task: str | None) -> _Target:
    if task is None and config is None and suite is None and any_task is None:
        raise ConfigError(
            f"{target} is a model, and nothing says what to evaluate it on; expected --task NAME (such as countdown), "
            "--config CONFIG or --suite FILE"
        )
    layers: list[Layer] = []
    model = _with_adapter(target) if is_adapter(target) else {"path": target}
    base = str(model["path"])
    if config is not None:
        layers.append(read_layer(config))
    else:
        layers.append(("the command line", {**NO_RUN, **_recommended(base, task)}))
    if task is None and config is None and suite is None:
        layers.append(("the command line", {"task": {"name": any_task}}))
    if task is not None:
        layers = [*_without_task(layers), ("--task", {"task": {"name": task, "template": _template(base)}})]
    layers.append((target, {"model": model}))
    name = Path(target).resolve().name if Path(target).exists() else target.rpartition("/")[2]
    what = suite.stem if suite is not None else task or (config and config.stem)
    return _Target(layers, name, Path("evaluations") / _name(name, what))


def _with_adapter(path: str) -> dict[str, object]:
    """Make the section ``model`` for an adapter's folder: the model that it names, and its settings."""
    adapter, base = read_settings(path)
    if not base:
        raise ConfigError(
            f"adapter {path!r} names no model (base_model_name_or_path); expected it in its adapter_config.json"
        )
    settings = {"rank": adapter.rank, "alpha": adapter.alpha, "targets": list(adapter.targets)}
    return {"path": base, "lora": {**settings, "rslora": adapter.rslora, "path": path}}


def _recommended(model: str, task: str | None) -> dict[str, Mapping[str, object]]:
    recommended = {} if task is None else task_named(task).recommended
    most, turns = recommended.get("sampling.max_tokens", MAX_TOKENS), recommended.get("sampling.max_turns")
    assert isinstance(most, int)
    return {
        "sampling": {
            "max_tokens": min(most, context_length(model) // 2),
            **({} if turns is None else {"max_turns": turns}),
        },
        "task": {"template": _template(model)},
    }


def _template(model: str) -> str:
    """Choose the chat template where the model has one."""
    return "chat" if Tokenizer.load(model).has_template() else "plain"


def _suite(path: Path) -> tuple[Layer, Mapping[str, Mapping[str, object]]]:
    _, content = read_layer(path)
    tasks, shared = content.get("tasks"), content.get("all", {})
    if set(content) - {"all", "tasks"} or not isinstance(tasks, Mapping) or not tasks:
        raise ConfigError(
            f"suite {path} has {', '.join(map(str, content)) or 'nothing'}; expected 'tasks', a section for each with "
            f"{' and '.join(OF_A_TASK)}, and 'all' for what they share"
        )
    for name, sections in tasks.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(name)):
            raise ConfigError(f"suite {path}: a task is named {name!r}; expected letters, digits, '.', '_', '-'")
        if not isinstance(sections, Mapping) or set(sections) - set(OF_A_TASK):
            found = ", ".join(map(str, sections)) if isinstance(sections, Mapping) else repr(sections)
            raise ConfigError(
                f"suite {path}: {name} has {found}; expected {' and '.join(OF_A_TASK)} only: its tasks share one "
                "cluster, so everything else stands in 'all'"
            )
    if not isinstance(shared, Mapping):
        raise ConfigError(
            f"suite {path}: 'all' is {shared!r}; expected sections such as evaluation: {{temperature: 0.6}}"
        )
    return (f"{path}: all", shared), tasks


def _without_task(layers: Sequence[Layer]) -> list[Layer]:
    """Drop what is about one task. The form of prompts stays: it is about the model."""
    kept: list[Layer] = []
    for source, sections in layers:
        task = sections.get("task")
        form = {key: task[key] for key in OF_A_MODEL if key in task} if isinstance(task, Mapping) else {}
        rest = {name: section for name, section in sections.items() if name != "task"}
        kept.append((source, {**rest, "task": form} if form else rest))
    return kept


def _name(model: str, what: str | None) -> str:
    return model if what is None else f"{model}-{re.sub('[^A-Za-z0-9._-]+', '-', what)}"
