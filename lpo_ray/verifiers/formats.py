"""Rewards for the shape of a response, whatever it says; to be added to others: ``math + 0.1*think_format``."""

from __future__ import annotations

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.places import CLOSE, OPEN, count_boxes, last_box
from lpo_ray.verifiers.thinking import after_thinking

_THINK = ("<think>", "</think>")
_ORDER = (*_THINK, OPEN, CLOSE)


def think_format(prompt: str, response: str) -> Verdict:
    """Give 1 when the response is one ``<think>...</think>`` and then one ``<answer>...</answer>``, with nothing but
    white space outside; 0 otherwise. A prompt that ends with ``<think>`` has opened it for the response.
    """
    text = _THINK[0] + response if prompt.rstrip().endswith(_THINK[0]) else response
    for tag in _ORDER:
        if text.count(tag) != 1:
            return Verdict.scored(0.0, f"{text.count(tag)} of {tag}, expected 1")
    places = [text.index(tag) for tag in _ORDER]
    if places != sorted(places):
        return Verdict.scored(0.0, f"the tags are not in the order {' '.join(_ORDER)}")
    think_open, think_close, answer_open, answer_close = places
    outside = (
        text[:think_open],
        text[think_close + len(_THINK[1]) : answer_open],
        text[answer_close + len(CLOSE) :],
    )
    if any(part.strip() for part in outside):
        return Verdict.scored(0.0, "text outside the tags")
    return Verdict.scored(1.0, "as asked")


def boxed_format(response: str, prompt: str = "") -> Verdict:
    r"""Give 1 when there is one ``\boxed{...}`` after the thinking, closed and not empty; 0 otherwise."""
    response = after_thinking(response, prompt)
    boxes = count_boxes(response)
    if boxes != 1:
        return Verdict.scored(0.0, f"{boxes} boxes, expected 1")
    content = last_box(response)
    if content is None or not content.strip():
        return Verdict.scored(0.0, "the box is empty" if content is not None else "the box is not closed")
    return Verdict.scored(1.0, "as asked")


def not_truncated(truncated: bool) -> Verdict:
    """Give 1 when the response ended by itself; 0 when it was cut off at sampling.max_tokens."""
    return Verdict.scored(float(not truncated), "cut off" if truncated else "ended by itself")
