from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.verifiers.calling.call import verify, verify_sum
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.formats import boxed_format, not_truncated, think_format
from tests.support.hostile_answers import PLACED

GOOD = "<think>\nlet me see\n</think>\n<answer>42</answer>"


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (GOOD, 1.0),
        (f"  {GOOD}\n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        (f"so {GOOD}", 0.0),
        (f"{GOOD} so", 0.0),
        ("<think>a</think> so <answer>42</answer>", 0.0),
        ("<answer>42</answer><think>a</think>", 0.0),
        ("<think>a<answer>42</answer></think>", 0.0),
        ("<think>a</think><think>b</think><answer>42</answer>", 0.0),
        (f"{GOOD}{GOOD}", 0.0),
        ("<think>a</think>", 0.0),
        ("<answer>42</answer>", 0.0),
        ("<think>a</think><answer>42", 0.0),
        ("a</think><answer>42</answer>", 0.0),
        ("<THINK>a</THINK><answer>42</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_think_format(response: str, reward: float) -> None:
    assert think_format("What is 6*7?", response).reward == reward


def test_the_prompt_may_have_opened_the_thought() -> None:
    assert think_format("What is 6*7? <think>\n", "a</think><answer>42</answer>").reward == 1.0
    assert think_format("What is 6*7? <think>\n", GOOD).reward == 0.0


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (r"so \boxed{42}", 1.0),
        (r"\boxed{\frac{1}{2}}", 1.0),
        (r"\boxed{1} \boxed{2}", 0.0),
        (r"\boxed{\boxed{1}}", 0.0),
        (r"\boxed{}", 0.0),
        (r"\boxed{ }", 0.0),
        (r"<think>\boxed{41}</think> \boxed{42}", 1.0),
        (r"<think>\boxed{42}</think> 42", 0.0),
        (r"<think>\boxed{42}", 0.0),
        (r"\boxed{42", 0.0),
        ("42", 0.0),
        ("", 0.0),
    ],
)
def test_boxed_format(response: str, reward: float) -> None:
    assert boxed_format(response).reward == reward


def test_not_truncated() -> None:
    assert not_truncated(False).reward == 1.0
    assert not_truncated(True).reward == 0.0
    assert verify("not_truncated", [Case("", "x", "", truncated=True)])[0].reward == 0.0


def test_they_add_up_with_others() -> None:
    verdict = verify_sum("boxed + 0.5*boxed_format + 0.25*not_truncated", [Case("", r"\boxed{42}", "42")])[0]
    assert verdict.reward == 1.75


@pytest.mark.parametrize("name", PLACED)
def test_hostile_responses_get_a_verdict(name: str) -> None:
    assert think_format("", PLACED[name]).reward == 0.0
    assert boxed_format(PLACED[name]).is_scored


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "x", "\\boxed{", "}"])))
def test_any_order_of_tags_gets_a_verdict(parts: list[str]) -> None:
    text = "".join(parts)
    kept = [part for part in parts if part.startswith("<")]
    if think_format("", text).reward == 1.0:
        assert kept == ["<think>", "</think>", "<answer>", "</answer>"]
    if boxed_format(text).reward == 1.0:
        assert text.count("\\boxed{", text.rfind("</think>") + 1) == 1
