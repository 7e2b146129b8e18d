"""Redaction of secrets (tokens, keys, passwords) in whatever is printed or written.

A secret is known by the name of its environment variable, as in RAY_AUTH_TOKEN, HF_TOKEN or WANDB_API_KEY. Ray's token
file holds another one. The keys of agents' sessions are known by what they begin with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lpo_ray.common.home import home

_NAMES = re.compile(
    r"(TOKEN|(API|ACCESS|AUTH|PRIVATE|SECRET)_?KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS)(_ID)?$", re.IGNORECASE
)
LEAST_LENGTH = 8
"""characters; a shorter value would be found everywhere in ordinary text"""
TOKEN_FILE = "RAY_AUTH_TOKEN_PATH"
SESSION_KEY = "lpo-session-"
"""what the key of an agent's session begins with, so that it is known wherever it is printed"""
_SESSION_KEYS = re.compile(rf"{SESSION_KEY}[\w-]{{8,}}")


def names_a_secret(name: str) -> bool:
    """Whether a variable of this name has a secret."""
    return _NAMES.search(name) is not None


def secrets(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Collect the secrets that this process knows: value -> name of its variable."""
    found = {value.strip(): name for name, value in environment.items() if names_a_secret(name)}
    token_file = Path(environment.get(TOKEN_FILE) or home(environment) / ".ray" / "auth_token")
    with suppress(OSError, UnicodeDecodeError):  # no token, or not ours to read
        found.setdefault(token_file.read_text(encoding="utf-8").strip(), TOKEN_FILE)
    return {value: name for value, name in found.items() if len(value) >= LEAST_LENGTH}


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Put ``<NAME>`` in place of each secret's value; longer secrets first, as one may contain another."""
    for value, name in sorted(secrets(environment).items(), key=lambda item: -len(item[0])):
        text = text.replace(value, f"<{name}>")
    return _SESSION_KEYS.sub("<the session's key>", text)


def secret_in(text: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Find the name of a variable whose secret value is in ``text``. None: there is none."""
    return next((name for value, name in secrets(environment).items() if value in text), None)
