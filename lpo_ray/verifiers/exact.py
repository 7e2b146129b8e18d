"""A response's answer against the dataset's as text: equal (``exact``), or of a regular expression (``regex``).

The response's answer is what stands in its last ``<answer>...</answer>``, or else all of it but its thinking.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any

from lpo_ray.verdict import BadAnswer, Verdict
from lpo_ray.verifiers.places import answered
from lpo_ray.verifiers.thinking import after_thinking

if TYPE_CHECKING:
    import regex as regex_library

MAX_CHARACTERS = 1000
"""length of an answer that is held against a regular expression; longer ones are wrong, so that no response can cost
time
"""
MATCH_SECONDS = 1.0
"""time of one match; a pattern that backtracks for longer than that has not matched"""


def exact(response: str, answer: str, prompt: str = "", raw_answer: Any = None) -> Verdict:  # noqa: ANN401 - any JSON
    """Give 1 when the answers are equal in Unicode's form NFC, any run of white space being one space; 0 otherwise.

    Of a list of answers any is right, also of ``{"target": [...]}`` as Search-R1 has it, and a boolean is equal in
    upper and lower case. Raises BadAnswer for an answer that is empty or another mapping, and for a list with nothing,
    a list or a mapping in it.
    """
    given, wanted = _one_line(answered(after_thinking(response, prompt))), wanted_lines(answer, raw_answer)
    if given in wanted or (isinstance(raw_answer, bool) and given.casefold() == wanted[0].casefold()):
        return Verdict.scored(1.0, "equal")
    return Verdict.scored(0.0, f"{given[:80]!r} is not {' or '.join(map(repr, wanted))[:80]}")


def wanted_lines(answer: str, raw_answer: Any) -> list[str]:  # noqa: ANN401 - any JSON
    """Read the texts that are right, each as one line. Raises BadAnswer when there is none."""
    if isinstance(raw_answer, dict) and raw_answer.keys() == {"target"}:
        target = raw_answer["target"]
        raw_answer = [target] if isinstance(target, str) else target if isinstance(target, list) else raw_answer
    texts = raw_answer if isinstance(raw_answer, list) else [answer]
    wanted = [_one_line(str(text)) for text in texts]
    readable = not isinstance(raw_answer, dict) and not any(isinstance(text, dict | list | None) for text in texts)
    if not readable or not wanted or not all(wanted):
        raise BadAnswer(f"the answer of exact is {answer[:80]!r}; expected a text that is not empty, or a list of them")
    return wanted


def regex(response: str, answer: str, prompt: str = "") -> Verdict:
    """Give 1 when ``answer``, a regular expression, matches the whole of the response's answer; 0 otherwise.

    Raises BadAnswer for a pattern that is none: the row is broken, not the response.
    """
    pattern, given = wanted_pattern(answer), answered(after_thinking(response, prompt))
    if len(given) > MAX_CHARACTERS:
        return Verdict.scored(0.0, f"{len(given)} characters, at most {MAX_CHARACTERS} are looked at")
    try:
        matches = pattern.fullmatch(given, timeout=MATCH_SECONDS) is not None
    except TimeoutError:
        return Verdict.scored(0.0, f"no match found within {MATCH_SECONDS:g} s: the pattern backtracks on this text")
    return Verdict.scored(float(matches), "matches" if matches else f"{given[:80]!r} does not match {answer[:80]!r}")


@cache
def wanted_pattern(answer: str) -> regex_library.Pattern[str]:
    """Compile with the regex package, which can give up; the standard library's ``re`` cannot. Raises BadAnswer."""
    import regex as regex_library

    try:
        if not answer.strip():
            raise BadAnswer(f"the answer of regex is {answer!r}; expected a regular expression that is not empty")
        return regex_library.compile(answer)
    except regex_library.error as error:
        raise BadAnswer(
            f"the answer of regex is {answer[:80]!r}, no regular expression (error: {error}); escape what it should "
            "match as it stands"
        ) from error


def line_vote(response: str, prompt: str = "") -> str | None:
    """Return the text that a response votes with; None when it is empty."""
    return _one_line(answered(after_thinking(response, prompt))) or None


def _one_line(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
