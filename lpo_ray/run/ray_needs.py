"""Needs of Ray in the process that starts it, which Ray does not say in words: its own errors name none of these.

Standard library only: ``lpo-ray doctor`` asks where nothing else can be imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lpo_ray.common.home import home, user, writable
from lpo_ray.errors import ConfigError

SOCKET_BYTES = 107
"""longest path of a Unix socket on Linux"""
LONGEST_SOCKET = "/ray/session_2026-11-30_12-00-00_000000_4194304/sockets/plasma_store.1"
"""what Ray puts behind its temporary folder, at its longest"""


@dataclass(frozen=True, slots=True)
class Need:
    """One need, and whether it is met."""

    name: str
    met: bool
    found: str
    expected: str
    advice: str


def needs(environment: Mapping[str, str] = os.environ, prefix: str = sys.prefix) -> list[Need]:
    """List all needs of a Ray node that is started here."""
    return [path_of_python(prefix), temporary_folder(environment), token_file(environment)]


def check_needs() -> None:
    """Raise ConfigError with the first need that is not met."""
    for need in needs():
        if not need.met:
            raise ConfigError(
                f"Ray cannot start here: {need.name} is {need.found}; expected {need.expected}: {need.advice}"
            )


def path_of_python(prefix: str) -> Need:
    """Look for white space in the environment's path: Ray's command lines do not quote it."""
    expected = "a path without white space, which Ray's command lines do not quote"
    advice = "make the environment in a folder whose path has none"
    return Need("path of Python", not any(map(str.isspace, prefix)), repr(prefix), expected, advice)


def temp_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Find the folder in which Ray makes its session's, as Ray does."""
    return Path(environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp")


def temporary_folder(environment: Mapping[str, str]) -> Need:
    """Look whether Ray's sockets fit behind the temporary folder's path, and can be made there."""
    folder = temp_dir(environment)
    room = SOCKET_BYTES - len(LONGEST_SOCKET.encode())
    size = len(os.fsencode(folder))
    named = next((name for name in ("RAY_TMPDIR", "TMPDIR") if environment.get(name)), "the default")
    expected = f"a path of at most {room} bytes that {user()} may write: Unix sockets are made in it"
    may = writable(folder)
    found = f"{folder} ({named}, {size} bytes{'' if may else ', not writable'})"
    return Need("Ray's temporary folder", may and size <= room, found, expected, "set RAY_TMPDIR, as to /tmp")


def token_file(environment: Mapping[str, str]) -> Need:
    """Look whether there is a token, or Ray can write one: it asks for one unless told otherwise."""
    name, expected = "Ray's token", f"a token, or a home folder in which {user()} may make one"
    advice = "set HOME to a folder of this user's, or RAY_AUTH_TOKEN_PATH to a file with a token"
    if environment.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return Need(name, True, "not asked for (RAY_AUTH_MODE)", expected, advice)
    if environment.get("RAY_AUTH_TOKEN"):
        return Need(name, True, "in RAY_AUTH_TOKEN", expected, advice)
    if given := environment.get("RAY_AUTH_TOKEN_PATH"):
        readable = os.access(given, os.R_OK)
        found = f"RAY_AUTH_TOKEN_PATH={given}{'' if readable else ', which cannot be read'}"
        return Need(name, readable, found, expected, advice)
    path = home(environment) / ".ray" / "auth_token"
    if os.access(path, os.R_OK):
        return Need(name, True, str(path), expected, advice)
    may = writable(path.parent)
    found = f"none yet; {path} {'can' if may else 'cannot'} be written"
    return Need(name, may, found, expected, advice)
