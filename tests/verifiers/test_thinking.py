from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.verifiers.answers import answer_of
from lpo_ray.verifiers.calling.call import verify
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.thinking import TAGS, after_thinking

RIGHT = {
    "math": (r"\boxed{7}", "7"),
    "boxed": (r"\boxed{7}", "7"),
    "geometry": (r"\boxed{7}", "7"),
    "exact": ("Oslo", "Oslo"),
    "regex": ("Oslo", "O.*"),
    "multiple_choice": (r"\boxed{C}", "C"),
    "countdown": ("3+4", '{"numbers": [3, 4], "target": 7}'),
    "countdown_strict": ("<answer>3+4</answer>", '{"numbers": [3, 4], "target": 7}'),
    "token_reversal": ("c b a", "c b a"),
    "token_reversal_share": ("c b a", "c b a"),
    "boxed_format": (r"\boxed{7}", ""),
}


@pytest.mark.parametrize("opening", TAGS)
@pytest.mark.parametrize("verifier", RIGHT)
def test_what_stands_in_the_thinking_is_no_answer(verifier: str, opening: str) -> None:
    text, answer = RIGHT[verifier]
    closing = TAGS[opening]

    def reward(response: str, prompt: str = "7?") -> float | None:
        return verify(verifier, [Case(prompt, response, answer)])[0].reward

    assert reward(text) == 1.0
    assert reward(f"{opening}\n{text}{closing}\n") == 0.0
    assert reward(f"{opening}\n{text}") == 0.0
    assert reward(f"{text}{closing}") == 0.0
    assert reward(text, prompt=f"7? {opening}\n") == 0.0
    for response in (
        f"{opening}\nperhaps 8{closing}\n{text}",
        f"perhaps 8{closing}\n\n{text}",
        f"{opening}{closing}{text}",
    ):
        assert reward(response) == 1.0
        assert reward(response.removeprefix(opening), prompt=f"7?{opening}") == 1.0
        assert answer_of(verifier, response, {}) == answer_of(verifier, text, {}) or verifier == "boxed_format"
    assert reward(text, prompt=f"7? {opening}\n\n{closing}\n\n") == 1.0  # switched off by the template


@pytest.mark.parametrize(
    ("response", "outside"),
    [
        ("plain", "plain"),
        ("<scratchpad>a</scratchpad>b", "b"),
        ("<Analysis>a</Analysis>b", "b"),
        ("<reflection>a</reflection><INNER_MONOLOGUE>b</INNER_MONOLOGUE>c", "c"),
        ("<thinking>a<reflection>b</reflection>c</thinking>d", "d"),
        ("the <analyst>a</analyst> of <matter>", "the <analyst>a</analyst> of <matter>"),
        ("<Think>a</THINK>b", "b"),
        ("<think> a </think> b </think> c", "c"),
        ("<think>a <think> b</think>c", "c"),
        ("a<think>b</think>c", "a\nc"),
        ("a<think>b", ""),
        ("<think>a</thinking>b", ""),
        ("<think>a</think>b<think>c</think>d", "b\nd"),
        ("analysisWe add.assistantfinalIt is 7.", "It is 7."),
        ("analysisWe add", ""),
        ("analysis of variance", "analysis of variance"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "b"),
        ("x < y and [0, 1)", "x < y and [0, 1)"),
    ],
)
def test_what_is_outside(response: str, outside: str) -> None:
    assert after_thinking(response).strip() == outside


@given(st.lists(st.sampled_from([*TAGS, *TAGS.values(), "x", " ", "<", "["])).map("".join))
def test_nothing_is_left_of_thinking(text: str) -> None:
    outside = after_thinking(text)
    assert len(outside) <= len(text) + text.count("<") + text.count("[") + text.count("◁")
    assert "x" not in after_thinking(f"{text}<think>x")


@pytest.mark.parametrize(
    "text", ["<think>", "</think>", "<", "[THINK]", "<|channel|>", "◁", "assistantfinal", "<think"]
)
def test_time_grows_as_the_text_does(text: str) -> None:
    def seconds(times: int) -> float:
        started = time.process_time()
        after_thinking(text * times)
        return time.process_time() - started

    small, large = (min(seconds(times) for _ in range(3)) for times in (4_000, 40_000))
    assert large < 40 * max(small, 1e-3)
