"""`lpo-ray doctor`: whether a machine, or a cluster, can run this. One row of ``table.CHECKS`` is one check."""

from lpo_ray.tools.doctor.findings import Check, Finding, State, Surroundings, examine, failures, passed
from lpo_ray.tools.doctor.table import CHECKS, WIDTH, as_json, render

__all__ = [
    "CHECKS", "WIDTH", "Check", "Finding", "State", "Surroundings",
    "as_json", "examine", "failures", "passed", "render",
]  # fmt: skip
