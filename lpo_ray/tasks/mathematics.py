"""Mathematics (LPO paper, MATH and Polaris): problems from a file, the answer in the last box."""

from __future__ import annotations

from lpo_ray.tasks.dataset import check_dataset, make_dataset
from lpo_ray.tasks.task import Task

MATH = Task(
    name="math",
    about="problems of task.path that ask for \\boxed{}; the answer is what the box should hold; reward 1 or 0",
    verifier="math",
    make=make_dataset,
    check=check_dataset,
    recommended={"task.template": "chat", "sampling.max_tokens": 4096, "pipeline.groups_per_step": 256},
)
