"""Plug-ins of a user: verifiers that misbehave, and a token clip that does."""

from __future__ import annotations

import os

from lpo_ray.verdict import Verdict


def spins(prompt: str, response: str, answer: str) -> Verdict:
    while True:
        pass


def dies(prompt: str, response: str, answer: str) -> Verdict:
    os._exit(7)


def digits(prompt: str, response: str, answer: str) -> Verdict:
    """Share of digits: any policy, trained or not, gets different rewards, so there is something to learn."""
    return Verdict.scored(sum(character.isdigit() for character in response) / (len(response) or 1))


def not_finite(delta: object, coefficient: object, low: float, high: float) -> object:
    """A token clip with a bug: 0/0 where a token has not moved."""
    return coefficient * delta / (delta - delta.detach())


def now_and_then(prompt: str, response: str, answer: str) -> Verdict | None:
    """As digits, but one call of ten hangs, dies or has no verdict."""
    chance = os.urandom(1)[0] % 30
    if chance == 0:
        spins(prompt, response, answer)
    if chance == 1:
        dies(prompt, response, answer)
    return None if chance == 2 else digits(prompt, response, answer)
