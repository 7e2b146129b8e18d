"""Verdicts: look the verifier up, call it, and never let its failure become a reward; and which version of a user's
verifier is meant. Import-light: this runs in every verifier process.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path

from lpo_ray.common.error_text import error_text
from lpo_ray.common.plugins import plugin_file, resolve
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.adapters import Judge, adapt
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.calling.weighted_sum import terms, weighted_sum
from lpo_ray.verifiers.table import VERIFIERS


def verify(name: str, cases: Sequence[Case], *, may_interrupt: bool = True) -> list[Verdict]:
    """Return verdicts of the named verifier on responses to one prompt. Whatever it raises is unscored, with its last
    line: of the response that did it, or of all that a verifier of whole groups was given. So a response that a
    verifier runs cannot end the process with ``exit()``.

    ``may_interrupt``: whether KeyboardInterrupt is a person's, who ends this process, and is let through.
    """
    try:
        judge = judge_named(name)
    except BaseException as error:  # here, though it is there where the run was started
        if may_interrupt and isinstance(error, KeyboardInterrupt):
            raise
        return [Verdict.failed(error_text(error))] * len(cases)
    try:
        return judge(cases)
    except BaseException as error:  # a user's verifier may raise anything; none of it is a reward
        if may_interrupt and isinstance(error, KeyboardInterrupt):
            raise
        if len(cases) > 1 and not judge.whole_group:
            return [verdict for case in cases for verdict in verify(name, [case], may_interrupt=may_interrupt)]
        return [Verdict.unscored(f"{error_text(error)} ({_place(error)})")] * len(cases)


def takes_whole_group(name: str) -> bool:
    """Tell whether the named verifier must be given all responses of a group at once. Raises UnknownName."""
    return judge_named(name).whole_group


def verify_sum(verifier: str, cases: Sequence[Case]) -> list[Verdict]:
    """Return verdicts of the weighted sum that ``verifier`` stands for, as in ``math + 0.2*think_format``."""
    sum_of = terms(verifier)
    parts = [verify(term.name, cases) for term in sum_of]
    return [weighted_sum(sum_of, verdicts) for verdicts in zip(*parts, strict=True)]


def _place(error: BaseException) -> str:
    """Return file and line that raised ``error``, without reading the file: the code may have been made on the way."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    return f"{frame.f_code.co_filename}:{line}"


@cache
def judge_named(name: str) -> Judge:
    """Return the verifier of a row of VERIFIERS, of ``module:function`` or of ``path/to/file.py:function``. Raises
    UnknownName.
    """
    return adapt(resolve(name, VERIFIERS, "task.verifier"), name)


@cache
def loaded_version(name: str) -> str:
    """Return the version of the verifier that this process has: the one on disk when it was first asked for it."""
    return version_of(name)


def version_of(name: str) -> str:
    """Digest the file of ``module:function`` or ``path/to/file.py:function`` as it is on disk now, without importing
    it. Empty for every other verifier: its version is this package's own or an endpoint's.
    """
    path = plugin_file(name)
    try:
        status = path.stat() if path is not None else None
        return "" if status is None else _digest(path, status.st_mtime_ns, status.st_size)
    except OSError:  # whoever loads it says so
        return ""


@lru_cache(maxsize=256)
def _digest(path: Path, changed: int, size: int) -> str:
    """Digest a file, once only as long as ``changed`` and ``size`` stay."""
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()
