"""Whether a verifier can read a row's answer: asked of every row before anything is sampled.

The verifier itself is asked, by an empty response, so the answer is read by the code that reads it later. Where that is
dear (a sandbox, a library), a row of READERS reads the answer alone. Functions and services from outside are not asked:
what they do with an answer is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lpo_ray.verdict import BadAnswer
from lpo_ray.verifiers.calling.call import judge_named
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.calling.weighted_sum import terms
from lpo_ray.verifiers.reasoning_gym import wanted_entry
from lpo_ray.verifiers.table import VERIFIERS
from lpo_ray.verifiers.unit_tests.layouts import parsed_answer

READERS: dict[str, Callable[[str, Mapping[str, Any]], object]] = {
    "reasoning_gym": lambda answer, row: wanted_entry(row),
    "unit_tests": parsed_answer,
}
"""verifier -> how it reads answer and row; raises when it cannot"""


def check_answer(verifier: str, answer: str, row: Mapping[str, Any], raw_answer: Any = None) -> None:  # noqa: ANN401 - any JSON
    """Check that each of our verifiers in the sum ``verifier`` can read the answer. Raises BadAnswer naming it."""
    for name in (term.name for term in terms(verifier)):
        if name not in VERIFIERS:
            continue
        try:
            if name in READERS:
                READERS[name](answer, row)
            else:
                judge_named(name)([Case("", "", answer, row, raw_answer=raw_answer)])
        except Exception as error:  # whatever it raises for this answer, it would raise for every response
            said = str(error) if isinstance(error, BadAnswer) else f"{type(error).__name__}: {error}"
            raise BadAnswer(f"{name} cannot read it: {said}") from error
