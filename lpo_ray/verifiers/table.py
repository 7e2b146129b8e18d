"""Plain functions that check one response: ``verifier(prompt, response, answer) -> Verdict``, or of any fields of Case.
Import-light: what a verifier needs beyond the standard library it imports when it is first asked.
"""

from __future__ import annotations

from collections.abc import Callable

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.boxed import boxed
from lpo_ray.verifiers.choice import multiple_choice
from lpo_ray.verifiers.countdown import countdown, countdown_strict
from lpo_ray.verifiers.exact import exact, regex
from lpo_ray.verifiers.formats import boxed_format, not_truncated, think_format
from lpo_ray.verifiers.geometry import geometry
from lpo_ray.verifiers.mathematics.verifier import math
from lpo_ray.verifiers.reasoning_gym import reasoning_gym
from lpo_ray.verifiers.token_reversal import token_reversal, token_reversal_share
from lpo_ray.verifiers.unit_tests.verifier import unit_tests

VERIFIERS: dict[str, Callable[..., Verdict]] = {
    "boxed": boxed,
    "boxed_format": boxed_format,
    "countdown": countdown,
    "countdown_strict": countdown_strict,
    "exact": exact,
    "geometry": geometry,
    "math": math,
    "multiple_choice": multiple_choice,
    "not_truncated": not_truncated,
    "reasoning_gym": reasoning_gym,
    "regex": regex,
    "think_format": think_format,
    "token_reversal": token_reversal,
    "token_reversal_share": token_reversal_share,
    "unit_tests": unit_tests,
}
"""task.verifier -> function"""
