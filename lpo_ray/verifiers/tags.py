"""Where a response puts its answer, when not in a box. Stdlib only."""

from __future__ import annotations

import re

OPEN, CLOSE = "<answer>", "</answer>"
MAX_LINE = 500
"""characters after "answer is" that are looked at"""

_SAID = re.compile(r"answer(?:\s+is\b|\s*:)[ \t]*(?::[ \t]*)?", re.IGNORECASE)


def last_answer(response: str) -> str | None:
    """Return what stands in the last closed ``<answer>...</answer>``; None without one."""
    end = response.rfind(CLOSE)
    start = response.rfind(OPEN, 0, end) if end >= 0 else -1
    return response[start + len(OPEN) : end] if start >= 0 else None


def answered(response: str) -> str:
    """Return what stands in the last closed pair of tags, or else the whole response; without spaces around it."""
    found = last_answer(response)
    return (response if found is None else found).strip()


def last_said(response: str) -> tuple[int, str] | None:
    """Return the rest of the line after the last "answer is" or "answer:" with something after it, and its place."""
    for said in reversed(list(_SAID.finditer(response))):
        line = response[said.end() : said.end() + MAX_LINE].partition("\n")[0].strip()
        if line:
            return said.start(), line
    return None
