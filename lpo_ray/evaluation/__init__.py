"""Evaluation: prompts are sampled and scored (``sampling``), what came out is kept (``results``, ``store``), and
becomes numbers with intervals (``estimators``, ``report``), a table and a picture.
"""

from lpo_ray.evaluation.estimators import bootstrap_interval, pass_at_k
from lpo_ray.evaluation.sampling import evaluate, score_prompts

__all__ = ["bootstrap_interval", "evaluate", "pass_at_k", "score_prompts"]
