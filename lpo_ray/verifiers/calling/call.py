"""Verdicts: look the verifier up, call it, and never let its failure become a reward. Import-light: this runs in every
verifier process.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from functools import cache

from lpo_ray.common.plugins import resolve
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.adapters import Judge, adapt
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.calling.version import version_of
from lpo_ray.verifiers.calling.weighted_sum import terms, weighted_sum
from lpo_ray.verifiers.table import VERIFIERS


def verify(name: str, cases: Sequence[Case]) -> list[Verdict]:
    """Verdicts of the named verifier on responses to one prompt. An exception inside it is its own failure: unscored,
    with its last line.
    """
    try:
        return judge_named(name)(cases)
    except Exception as error:  # noqa: BLE001 - a user's verifier may raise anything; none of it is a reward
        if len(cases) > 1:  # one of them did it
            return [verdict for case in cases for verdict in verify(name, [case])]
        where = traceback.extract_tb(error.__traceback__)[-1]
        return [Verdict.unscored(f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})")]


def verify_sum(verifier: str, cases: Sequence[Case]) -> list[Verdict]:
    """Verdicts of the weighted sum that ``verifier`` stands for; see ``mixture``."""
    sum_of = terms(verifier)
    parts = [verify(term.name, cases) for term in sum_of]
    return [weighted_sum(sum_of, verdicts) for verdicts in zip(*parts, strict=True)]


@cache
def judge_named(name: str) -> Judge:
    """The verifier of a row of VERIFIERS, of ``module:function`` or of ``path/to/file.py:function``. Raises
    UnknownName.
    """
    return adapt(resolve(name, VERIFIERS, "task.verifier"), name)


@cache
def loaded_version(name: str) -> str:
    """Which version of the verifier this process has: the one on disk when it was first asked for it."""
    return version_of(name)
