"""Tasks whose prompts and answers stand in files: any data set, and those of the LPO paper with their own verifiers.

Rows may have ``images`` (verl's layout: a list of {bytes, path}). This version trains on text: a row with images is
refused, as the policy would be asked about what it does not see, unless task.options.images=ignore; then the images
stay in the prompt's ``row`` (bytes as base64), where verifiers find them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import ConfigError
from lpo_ray.tasks.sources.dataset import DatasetSource
from lpo_ray.tasks.sources.files import files_of
from lpo_ray.tasks.sources.prompt_file import Reading
from lpo_ray.tasks.task import SourceContext, Task, known_only, refused
from lpo_ray.verifiers.calling.weighted_sum import terms
from lpo_ray.verifiers.table import VERIFIERS


def make_dataset(task: TaskConfig, given: SourceContext) -> DatasetSource:
    """Make the source of any task whose prompts stand in files."""
    return DatasetSource(
        path=task.path,
        heldout_path=task.heldout_path,
        reading=Reading(
            encoder=given.encoder,
            prompt_column=task.prompt_column,
            answer_column=task.answer_column,
            needs_answer=needs_answer(given.verifier),
            ignore_images=task.options.get("images") == "ignore",
        ),
        verifier=given.verifier,
        seed=given.seed,
        num_train=task.num_train,
    )


def check_dataset(task: TaskConfig, num_heldout: int) -> None:
    """Check that files are named, and there. ConfigError otherwise."""
    known_only(task.options, {"images": "ignore, to train without the images that rows have"}, task.name)
    images = task.options.get("images", "refuse")
    if images not in ("refuse", "ignore"):
        raise refused("images", images, "refuse or ignore")
    if task.path is None and task.heldout_path is None:
        raise ConfigError(
            f"task.path is null; task.name={task.name} needs a file to train on (.jsonl, .parquet, .csv, ...), or "
            "one to be evaluated on as task.heldout_path"
        )
    if task.heldout_path is None and num_heldout:
        raise ConfigError(
            "task.heldout_path is null, but evaluation.num_prompts is "
            f"{num_heldout}; give a file of held-out prompts, or set evaluation.num_prompts=0"
        )
    for path in (task.path, task.heldout_path):
        if path is not None:
            files_of(path)


def needs_answer(verifier: str) -> bool:
    """Tell whether one of our verifiers in the sum takes the answer. What others' do with an empty one is theirs."""
    return any("answer" in _parameters(term.name) for term in terms(verifier))


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(VERIFIERS[name]).parameters if name in VERIFIERS else {}


DATASET = Task(
    name="dataset",
    about="prompts and answers of task.path (files, or a Hugging Face data set); reward by task.verifier",
    verifier=None,
    make=make_dataset,
    check=check_dataset,
)

MATH = Task(
    name="math",
    about="problems of task.path that ask for \\boxed{}; the answer is what the box should hold; reward 1 or 0",
    verifier="math",
    make=make_dataset,
    check=check_dataset,
    recommended={"task.template": "chat", "sampling.max_tokens": 4096, "pipeline.groups_per_step": 256},
)
"""LPO paper, MATH and Polaris"""

CODE = Task(
    name="code",
    about="problems of task.path; the answer is unit tests, as JSON; reward by the tests that the program passes",
    verifier="unit_tests",
    make=make_dataset,
    check=check_dataset,
    recommended={"task.template": "chat", "sampling.max_tokens": 4096, "pipeline.groups_per_step": 256},
)
"""LPO paper, PRIME"""

GEOMETRY = Task(
    name="geometry",
    about="problems of task.path with the figure in words; the answer is a number; reward 1, 0.1 for another, or 0",
    verifier="geometry",
    make=make_dataset,
    check=check_dataset,
    recommended={"task.template": "chat", "sampling.max_tokens": 1024, "pipeline.groups_per_step": 128},
)
"""LPO paper, Geometry3k"""
