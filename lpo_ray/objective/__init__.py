"""The paper's objective: torch and the standard library, tensors in, tensors out.

Read in this order: simplex, temperature, target, divergence, token_clip, off_policy, diagnostics.
"""

from lpo_ray.objective.diagnostics import Diagnostics, diagnose
from lpo_ray.objective.divergence import DIVERGENCES, UNANCHORED, Projection, project
from lpo_ray.objective.off_policy import effective_sample_size, temper, truncated_importance
from lpo_ray.objective.simplex import listwise, response_log_ratio
from lpo_ray.objective.target import gibbs_target
from lpo_ray.objective.temperature import TEMPERATURES, target_temperature
from lpo_ray.objective.token_clip import TOKEN_CLIPS, clipped_token_loss

__all__ = [
    "DIVERGENCES",
    "TEMPERATURES",
    "TOKEN_CLIPS",
    "UNANCHORED",
    "Diagnostics",
    "Projection",
    "clipped_token_loss",
    "diagnose",
    "effective_sample_size",
    "gibbs_target",
    "listwise",
    "project",
    "response_log_ratio",
    "target_temperature",
    "temper",
    "truncated_importance",
]
