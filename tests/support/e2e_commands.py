"""A command that is one of several foreign programs, chosen by its row: one run trains them all.

Run as a program, it becomes the one that it chose, unmodified, with the row on its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from pathlib import Path

AGENTS = Path(__file__).parents[2] / "configs" / "agents"
PROGRAMS = (
    ("sh", f"{AGENTS}/ask.sh"),
    ("node", f"{AGENTS}/ask.mjs"),
    ("python", str(Path(__file__).with_name("e2e_agents.py"))),
    ("python", __file__, "by_hand"),
)
"""curl in a shell; node by Anthropic's API; python with the openai client; the function of by_hand.py"""


def chosen(prompt: str) -> int:
    """Return which program works on a prompt."""
    return zlib.crc32(prompt.encode()) % len(PROGRAMS)


def main() -> None:
    """Become the program, or run the function."""
    if sys.argv[1:] == ["by_hand"]:
        import asyncio

        import openai

        sys.path.insert(0, str(AGENTS))
        import by_hand

        asyncio.run(by_hand.solve(json.load(sys.stdin), openai.AsyncOpenAI()))
        return
    row = sys.stdin.read()
    reading, writing = os.pipe()
    os.write(writing, row.encode())  # a row is shorter than a pipe's buffer
    os.close(writing)
    os.dup2(reading, 0)
    program = PROGRAMS[chosen(json.loads(row)["prompt"])]
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
