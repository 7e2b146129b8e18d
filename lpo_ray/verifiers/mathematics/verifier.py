r"""Mathematics: the response's answer against the dataset's, in LaTeX or plain.

``places`` finds the answer in the response and in the data set's solution, ``reading`` says what it is, and
``equality`` whether both are the same. Numbers are compared exactly, expressions by their values at several points.
What cannot be read is compared as words.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from lpo_ray.verdict import BadAnswer, Verdict
from lpo_ray.verifiers.mathematics.equality import same, vote
from lpo_ray.verifiers.mathematics.kinds import Reading, Words
from lpo_ray.verifiers.mathematics.reading import count_words, read
from lpo_ray.verifiers.places import answer_in, unquoted
from lpo_ray.verifiers.thinking import after_thinking

NO_ANSWERS = frozenset(("proof", "notfound", "not found", "n / a", "null", "nan", "no answer", "see solution", "none"))
"""what data sets write where a problem has no answer"""
MAX_WORDS = 24
"""words of an answer; a longer text is a solution that names none"""


def math(response: str, answer: str, prompt: str = "") -> Verdict:
    """Give 1 when the answers are equal, 0 otherwise. Raises BadAnswer for an answer that cannot be read."""
    wanted = wanted_answer(answer)
    given = answer_in(after_thinking(response, prompt))
    if given is None:
        return Verdict.scored(0.0, "no answer in a closed \\boxed{}, in <answer></answer> or after 'answer is'")
    return compared(given, answer, wanted)


def compared(given: str, answer: str, wanted: Reading, near: Fraction = Fraction(0)) -> Verdict:
    """Give 1 when the text ``given`` is the answer ``wanted``, 0 otherwise."""
    reading = read(given)
    if reading is None:
        return Verdict.scored(0.0, f"{given[:80]!r} is empty or too long to be an answer")
    if same(reading, wanted, near):
        return Verdict.scored(1.0, "equal")
    return Verdict.scored(0.0, f"{given[:80]!r} is not {answer[-80:]!r}")


@lru_cache(maxsize=1024)
def wanted_answer(answer: str) -> Reading:
    """Read the answer of a data set, which may be a solution that names it. Raises BadAnswer when it has none."""
    answer = unquoted(answer)
    found = answer_in(answer)
    text = answer if found is None and not answer.rstrip().endswith("####") else found or ""
    reading = read(text)
    if reading is None or count_words(text) > MAX_WORDS or (isinstance(reading, Words) and _says_nothing(reading.text)):
        raise BadAnswer(
            f"the answer of a mathematics task is {answer[:80]!r}; expected a number, an expression, a list, or words "
            f"(at most {MAX_WORDS}), also in a box or after ####"
        )
    return reading


def _says_nothing(text: str) -> bool:
    return text in NO_ANSWERS or not any(character.isalnum() for character in text)


def math_vote(response: str, prompt: str = "") -> str | None:
    """Return the text that a response votes with; None when it gives no answer."""
    given = answer_in(after_thinking(response, prompt))
    return None if given is None else vote_of(given)


def vote_of(given: str) -> str | None:
    """Return the text that equal answers have in common; None for an empty one."""
    reading = read(given)
    return None if reading is None else vote(reading)
