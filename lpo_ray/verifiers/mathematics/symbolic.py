"""Whether two mathematical texts are equal, by math-verify on sympy. Imported when first used: it takes a second.

Only an answer of the dataset's that cannot be read in time, and a library that is broken, are trouble of the checking.
What a response causes is its own: text that cannot be read, things that cannot be compared, and a comparison that
takes longer than SECONDS of processor time when the response is the longer of the two.
"""

from __future__ import annotations

import logging
import re
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

from lpo_ray.verifiers.calling.cpu_budget import OutOfTime, cpu_budget

SECONDS = 1.5
"""processor time of one step; a verdict has three"""
DECIMALS = 6

_UNREADABLE = re.compile(r"[\n$]")


def equivalent(given: str, wanted: str) -> tuple[bool, str]:
    """Tell whether two texts are equal, and how that was seen. Raises TimeoutError, and RuntimeError when the library
    is broken.
    """
    library = _library()  # outside of any limit: an import that is broken off stays broken
    try:
        with cpu_budget(SECONDS):
            gold = _read(wanted)
    except OutOfTime:
        raise TimeoutError(f"the answer {wanted[:80]!r} took more than {SECONDS:g} s to read") from None
    if not gold:
        return False, "the dataset's answer is compared as text only, for it cannot be read as mathematics"
    try:
        with cpu_budget(SECONDS):
            target = _read(given)
    except OutOfTime:
        return False, f"it took more than {SECONDS:g} s to read"
    if not target:
        return False, "it cannot be read as mathematics"
    try:
        with cpu_budget(SECONDS):
            same = library.verify(gold, target, float_rounding=DECIMALS, timeout_seconds=0, raise_on_error=True)
    except OutOfTime:
        if len(given) > len(wanted):
            return False, f"it took more than {SECONDS:g} s to compare"
        raise TimeoutError(f"comparing {given!r} with the answer {wanted!r} took more than {SECONDS:g} s") from None
    except Exception as error:  # noqa: BLE001 - sympy raises whatever it meets between things of different kinds
        return False, f"they cannot be compared: {type(error).__name__}"
    return bool(same), "by math-verify"


@lru_cache(maxsize=256)
def _read(text: str) -> list[Any]:
    """Return what math-verify reads in ``text``; empty when it is no mathematics."""
    library = _library()
    config = library.LatexExtractionConfig(boxed_match_priority=-1)
    try:
        return library.parse(
            f"${_UNREADABLE.sub(' ', text)}$", [config], fallback_mode="no_fallback", parsing_timeout=0,
            raise_on_error=True,
        )  # fmt: skip
    except Exception:  # noqa: BLE001 - the parser raises whatever it meets in a text that is no LaTeX
        return []


@cache
def _library() -> ModuleType:
    """Import math-verify and let it show that it works: what it fails at from here on is a text's fault."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timer is off; ours is on
    half = math_verify.parse(r"$\frac{1}{2}$", parsing_timeout=0, raise_on_error=True)
    if not math_verify.verify(half, math_verify.parse("$0.5$", parsing_timeout=0), timeout_seconds=0):
        raise RuntimeError(
            "math-verify says that 1/2 is not 0.5; reinstall math-verify, latex2sympy2_extended and sympy"
        )
    return math_verify
