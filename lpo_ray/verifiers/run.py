"""One verdict: look the verifier up, call it, and never let its failure become a reward. Import-light: this runs in
every verifier process.
"""

from __future__ import annotations

import traceback

from lpo_ray.plugins import resolve
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers import VERIFIERS


def verify(verifier: str, prompt: str, response: str, answer: str) -> Verdict:
    """Verdict of the named verifier. An exception inside it is its own failure: unscored, with its last line."""
    try:
        verdict = resolve(verifier, VERIFIERS, "task.verifier")(prompt, response, answer)
    except Exception as error:  # noqa: BLE001 - a user's verifier may raise anything; none of it is a reward
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Verdict.unscored(f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})")
    if not isinstance(verdict, Verdict):
        return Verdict.unscored(f"verifier {verifier} returned {type(verdict).__name__}, expected a Verdict")
    return verdict
