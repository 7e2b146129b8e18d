"""Several verifiers at once: ``math + 0.2*think_format`` is the weighted sum of their rewards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lpo_ray.verdict import Verdict

_PLUS = re.compile(r"\s\+\s")
_TERM = re.compile(r"(?:(?P<weight>-?(?:\d+\.?\d*|\.\d+))\s*\*\s*)?(?P<name>\S+)")


class NotASum(ValueError):
    """Error of a text that is no sum of verifiers."""


@dataclass(frozen=True, slots=True)
class Term:
    """One verifier of a sum, with its weight."""

    weight: float
    name: str


def terms(text: str) -> tuple[Term, ...]:
    """Parse the sum that ``task.verifier`` stands for. Spaces are around each plus, so a name or an address may have
    one.
    """
    found = [(_TERM.fullmatch(part.strip()), part) for part in _PLUS.split(text)]
    for match, part in found:
        if match is None:
            raise NotASum(
                f"task.verifier is {text!r}, where {part.strip()!r} is no verifier; expected a name, or a sum such as "
                "'math + 0.2*think_format', with spaces around each +"
            )
    return tuple(Term(float(m["weight"] or 1), m["name"]) for m, _ in found if m is not None)


def is_remote(verifier: str) -> bool:
    """Tell whether the verifier is a service elsewhere."""
    return verifier == "judge" or verifier.startswith(("http://", "https://"))


def weighted_sum(sum_of: Sequence[Term], verdicts: Sequence[Verdict]) -> Verdict:
    """Add up the verdicts of all terms. A term that abstains is left out, unless all do. Without a reward when another
    term has none: a reward that lacks a part is no reward.
    """
    if len(sum_of) == 1 and sum_of[0].weight == 1:
        return verdicts[0]
    total, said = 0.0, []
    for term, verdict in zip(sum_of, verdicts, strict=True):
        if verdict.reward is None and verdict.lack != "abstained":
            return Verdict(None, f"{term.name}: {verdict.detail}", verdict.lack)
        if verdict.reward is not None:
            total += term.weight * verdict.reward
            said.append(f"{term.name} {verdict.reward:g}" + (f" ({verdict.detail})" if verdict.detail else ""))
    if not said:
        return Verdict.abstained("; ".join(f"{t.name}: {v.detail}" for t, v in zip(sum_of, verdicts, strict=True)))
    return Verdict.scored(total, "; ".join(said))
