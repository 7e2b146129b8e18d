from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.overlong import Overlong
from lpo_ray.verifiers.calling.weighted_sum import NotASum, Term, is_remote, terms, weighted_sum


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("math", (Term(1, "math"),)),
        ("math + 0.2*think_format", (Term(1, "math"), Term(0.2, "think_format"))),
        ("0.5 * a.b:c + -.5*x/y.py:f", (Term(0.5, "a.b:c"), Term(-0.5, "x/y.py:f"))),
        ("https://h/a+b?c=d*2 + 2*judge", (Term(1, "https://h/a+b?c=d*2"), Term(2, "judge"))),
    ],
)
def test_sums(text: str, expected: tuple[Term, ...]) -> None:
    assert terms(text) == expected


@pytest.mark.parametrize("text", ["", " ", "a + ", " + a", "a b", "a + + b"])
def test_what_is_no_sum_says_which_part(text: str) -> None:
    with pytest.raises(NotASum, match="is no verifier"):
        terms(text)


@given(st.text())
def test_any_text_is_a_sum_or_refused(text: str) -> None:
    with contextlib.suppress(NotASum):
        assert terms(text)


def test_a_sum_is_weighted_and_says_its_parts() -> None:
    total = weighted_sum(terms("a + 0.2*b"), [Verdict.scored(1.0, "right"), Verdict.scored(0.5)])
    assert total.reward == pytest.approx(1.1)
    assert total.detail == "a 1 (right); b 0.5"


def test_a_sum_that_lacks_a_part_is_unscored() -> None:
    total = weighted_sum(terms("a + 0*b"), [Verdict.scored(1.0), Verdict.unscored("timeout")])
    assert total == Verdict.unscored("b: timeout")


def test_a_term_that_does_not_apply_leaves_the_others_to_decide() -> None:
    applies_not = Verdict.abstained("returned None")
    assert weighted_sum(terms("a + 0.2*b"), [applies_not, Verdict.scored(0.5)]).reward == pytest.approx(0.1)
    assert weighted_sum(terms("a + b"), [applies_not, applies_not]).lack == "abstained"
    assert weighted_sum(terms("a + b"), [applies_not, Verdict.failed("gone")]) == Verdict.failed("b: gone")


def test_services_are_told_by_their_form() -> None:
    assert [is_remote(name) for name in ("judge", "http://x", "https://x", "math", "a:b", "judge:f")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(("tokens", "lost"), [(1, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (101, -1)])
def test_overlong_responses_lose_as_in_dapo(tokens: int, lost: float) -> None:
    assert Overlong(100, 20)(tokens) == pytest.approx(lost)
    assert Overlong(100, 20, 0.5)(tokens) == pytest.approx(lost / 2)
    assert Overlong(100)(tokens) == 0
