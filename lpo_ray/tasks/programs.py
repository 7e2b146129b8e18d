"""Code (LPO paper, PRIME): problems from a file, whose answer is tests that a program has to pass."""

from __future__ import annotations

from lpo_ray.tasks.dataset import check_dataset, make_dataset
from lpo_ray.tasks.task import Task

CODE = Task(
    name="code",
    about="problems of task.path; the answer is unit tests, as JSON; reward by the tests that the program passes",
    verifier="unit_tests",
    make=make_dataset,
    check=check_dataset,
    recommended={"task.template": "chat", "sampling.max_tokens": 4096, "pipeline.groups_per_step": 256},
)
