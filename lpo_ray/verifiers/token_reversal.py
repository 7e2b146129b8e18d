"""Token reversal (TPO, arXiv 2604.06159): the response against the prompt's symbols backwards, white space aside.

A reward for all of it is TPO's terminal one, the rare reward that its benchmark is about; a reward for each symbol is
its "bag of tokens", for a policy that would never see the other.
"""

from __future__ import annotations

from lpo_ray.verdict import Verdict


def token_reversal(prompt: str, response: str, answer: str) -> Verdict:
    """Give 1 when every symbol is right and there are no more, 0 otherwise."""
    right, given, wanted = _compared(response, answer)
    return Verdict.scored(float(right == given == wanted), f"{right} of {wanted} right, {given} given")


def token_reversal_share(prompt: str, response: str, answer: str) -> Verdict:
    """Give the share of the answer's places with the right symbol; symbols beyond the last place do not count."""
    right, given, wanted = _compared(response, answer)
    return Verdict.scored(right / wanted, f"{right} of {wanted} right, {given} given")


def _compared(response: str, answer: str) -> tuple[int, int, int]:
    """Count the symbols that are right, that the response has, and that the answer has."""
    given, wanted = "".join(response.split()), "".join(answer.split())
    if not wanted:
        raise ValueError(f"the answer is {answer!r}; expected the prompt's symbols backwards")
    return sum(a == b for a, b in zip(given, wanted, strict=False)), len(given), len(wanted)
