"""Geometry (LPO paper, Geometry3k): problems from a file, a number in the last box.

Rows are those of other data sets, and may have ``images`` (verl's layout: a list of {bytes, path}). This version trains
on text: a row with images is refused, as the policy would be asked about what it does not see, unless
task.options.images=ignore; then the images stay in the prompt's ``row`` (bytes as base64), where verifiers find them.
"""

from __future__ import annotations

from lpo_ray.tasks.dataset import check_dataset, make_dataset
from lpo_ray.tasks.task import Task

GEOMETRY = Task(
    name="geometry",
    about="problems of task.path with the figure in words; the answer is a number; reward 1, 0.1 for another, or 0",
    verifier="geometry",
    make=make_dataset,
    check=check_dataset,
    recommended={"task.template": "chat", "sampling.max_tokens": 1024, "pipeline.groups_per_step": 128},
)
