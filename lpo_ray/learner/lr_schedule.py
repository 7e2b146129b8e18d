"""Learning-rate schedules by the names of transformers: one value for all updates of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.optim.lr_scheduler import LambdaLR

from lpo_ray.errors import ConfigError

SCHEDULES = (
    "constant", "constant_with_warmup", "cosine", "cosine_warmup_with_min_lr", "cosine_with_min_lr",
    "cosine_with_restarts", "inverse_sqrt", "linear", "polynomial", "warmup_stable_decay",
)  # fmt: skip
"""values of learner.lr_schedule: those of transformers, but for two that follow a metric instead of the step"""


def learning_rates(
    name: str, lr: float, *, steps: int, warmup_steps: int, arguments: Mapping[str, object]
) -> Callable[[int], float]:
    """Make the function step (from 0) -> rate. Raises ConfigError for arguments that the schedule does not take."""
    from transformers import get_scheduler  # with it come its trainer and PEFT, which take a second

    optimiser = torch.optim.SGD([torch.zeros(1)], lr=lr)
    try:
        schedule = get_scheduler(
            name, optimiser, num_warmup_steps=warmup_steps, num_training_steps=steps,
            scheduler_specific_kwargs=dict(arguments),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"learner.lr_schedule={name} with learner.lr_schedule_kwargs={dict(arguments)}: {error}; see the "
            "arguments of that schedule in transformers"
        ) from error
    assert isinstance(schedule, LambdaLR)
    factor = schedule.lr_lambdas[0]
    return lambda step: lr * float(factor(step))
