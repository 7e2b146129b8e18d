"""The commands that launch files end in, as a user would type them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def commands(path: Path, start: str) -> list[list[str]]:
    """Arguments of every command in ``path`` that begins with ``start``, in comments too; continued lines are joined.
    What a shell would take for a comment, or for "in the background", is left out.
    """
    text = re.sub(r"\\\n#?\s*", " ", path.read_text())
    found = re.findall(rf"(?:^|\s)({re.escape(start)} .*)$", text, re.MULTILINE)
    return [shlex.split(line.removesuffix("&").strip(), comments=True) for line in found]
