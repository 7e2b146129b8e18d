"""Plain functions that check one response: ``verifier(prompt, response, answer) -> Verdict``. Import-light."""

from __future__ import annotations

from collections.abc import Callable

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.boxed import boxed
from lpo_ray.verifiers.countdown import countdown, countdown_strict

VERIFIERS: dict[str, Callable[[str, str, str], Verdict]] = {
    "boxed": boxed,
    "countdown": countdown,
    "countdown_strict": countdown_strict,
}
"""task.verifier -> function"""
