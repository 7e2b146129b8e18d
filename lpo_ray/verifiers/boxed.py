r"""The last ``\boxed{...}`` of a response against the answer: as ``math`` compares, and numbers within NEAR.

When the last box is not closed, as in a truncated response, an earlier one does not count.
"""

from __future__ import annotations

from fractions import Fraction

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.mathematics.verifier import compared, vote_of, wanted_answer
from lpo_ray.verifiers.places import MAX_CHARACTERS, last_box
from lpo_ray.verifiers.thinking import after_thinking

NEAR = Fraction(1, 100_000)
"""how far two numbers may be apart, both absolutely and relative to the answer"""


def boxed(prompt: str, response: str, answer: str) -> Verdict:
    """Give 1 when the last box holds the answer, 0 otherwise. Raises BadAnswer for an answer that cannot be read."""
    wanted = wanted_answer(answer)
    given = last_box(after_thinking(response, prompt))
    if given is None:
        return Verdict.scored(0.0, f"no \\boxed{{}} that is closed within {MAX_CHARACTERS} characters")
    return compared(given, answer, wanted, NEAR)


def boxed_vote(response: str, prompt: str = "") -> str | None:
    """Return the text that a response votes with; None when its last box holds nothing."""
    given = last_box(after_thinking(response, prompt))
    return None if given is None else vote_of(given)
