"""A Dockerfile as data: enough of the format for ours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its flags apart."""

    keyword: str
    flags: tuple[str, ...]
    """such as --from=build"""
    text: str


@dataclass(frozen=True, slots=True)
class Stage:
    """From one FROM to the next."""

    name: str
    base: str
    """arguments filled in with their defaults"""
    instructions: list[Instruction] = field(default_factory=list)

    def of(self, keyword: str) -> list[Instruction]:
        """All instructions of a kind, in order."""
        return [instruction for instruction in self.instructions if instruction.keyword == keyword]


def parse_dockerfile(path: Path) -> list[Stage]:
    """The stages, in order."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(None, text.splitlines()):
        keyword, _, rest = line.partition(" ")
        if keyword == "ARG" and not stages:
            name, _, default = rest.partition("=")
            arguments[name] = default
        elif keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(name, re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], base)))
        else:
            *flags, last = re.split(r"(?<=\S) (?!--)", rest, maxsplit=1) if rest.startswith("--") else [rest]
            stages[-1].instructions.append(Instruction(keyword, tuple(" ".join(flags).split()), last))
    return stages
