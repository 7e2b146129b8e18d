"""Verifiers that misbehave."""

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
