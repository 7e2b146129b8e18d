"""Token reversal (TPO, arXiv 2604.06159): the response against the prompt's symbols backwards, white space aside.

A reward for all of it is TPO's terminal one, the rare reward that its benchmark is about; a reward for each symbol is
its "bag of tokens", for a policy that would never see the other.
"""

from __future__ import annotations

from lpo_ray.verdict import BadAnswer, Verdict
from lpo_ray.verifiers.thinking import after_thinking


def token_reversal(prompt: str, response: str, answer: str) -> Verdict:
    """Give 1 when every symbol is right and there are no more, 0 otherwise."""
    right, given, wanted = _compared(after_thinking(response, prompt), answer)
    return Verdict.scored(float(right == given == wanted), f"{right} of {wanted} right, {given} given")


def token_reversal_share(prompt: str, response: str, answer: str) -> Verdict:
    """Give the share of the answer's places with the right symbol; symbols beyond the last place do not count."""
    right, given, wanted = _compared(after_thinking(response, prompt), answer)
    return Verdict.scored(right / wanted, f"{right} of {wanted} right, {given} given")


def _compared(response: str, answer: str) -> tuple[int, int, int]:
    """Count the symbols that are right, that the response has, and that the answer has."""
    given, wanted = "".join(response.split()), wanted_symbols(answer)
    return sum(a == b for a, b in zip(given, wanted, strict=False)), len(given), len(wanted)


def wanted_symbols(answer: str) -> str:
    """Read the answer of a data set. Raises BadAnswer when it is empty."""
    wanted = "".join(answer.split())
    if not wanted:
        raise BadAnswer(f"the answer is {answer!r}; expected the prompt's symbols backwards")
    return wanted


def symbols_vote(response: str, prompt: str = "") -> str | None:
    """Return the text that a response votes with; None when it is empty."""
    return "".join(after_thinking(response, prompt).split()) or None
