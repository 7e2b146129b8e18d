"""Manifests: roles, schemas, and what `ray start` makes of a command."""

from __future__ import annotations

import gzip
import json
from typing import Any

import click

from tests.launch.commands import ROOT

ROLES = ["learner", "rollout", "verifier"]


def schema_of(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((ROOT / "tests" / "data" / f"{name}.schema.json.gz").read_bytes()))


def parse_ray(command: list[str]) -> click.Context:
    """What ``ray start`` makes of it. Raises click.UsageError."""
    from ray.scripts.scripts import start

    assert command[:2] == ["ray", "start"]
    return start.make_context("start", command[2:])
