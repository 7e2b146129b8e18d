"""Files that an image leaves out."""

from __future__ import annotations

import fnmatch

from tests.launch.commands import ROOT


def ignored(path: str, rules: str, *, at_any_depth: bool) -> bool:
    """Whether a line of ``rules`` names the file or a folder that it is in: the part of the syntax that we use. A line
    without a slash is of the top folder, unless it begins with "**/" or, as git has it, ``at_any_depth``.
    """
    parts = path.split("/")
    folders = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    for line in (line.rstrip("/") for line in rules.splitlines() if line and not line.startswith("#")):
        anywhere = line.startswith("**/") or (at_any_depth and "/" not in line)
        candidates = parts if anywhere else folders
        if any(fnmatch.fnmatchcase(candidate, line.removeprefix("**/")) for candidate in candidates):
            return True
    return False


def docker_ignores(path: str) -> bool:
    """Whether .dockerignore leaves the file out of an image."""
    return ignored(path, (ROOT / ".dockerignore").read_text(), at_any_depth=False)
