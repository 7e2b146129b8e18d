"""A program that reads and prints, run once for each input: all runs in one sandbox, which takes longer to start than
most programs take to run. What they print is compared out here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from lpo_ray.verifiers.sandbox.inside.repeater import BEGUN
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.sandbox.process import Program, code_of
from lpo_ray.verifiers.sandbox.program import ProgramResult, patiently, run_program

_HEAD = re.compile(rb"(\d{1,4}) ([01]) (\d{1,9}) (\d{1,9})\n")
_HEAD_BYTES = 32


@dataclass(frozen=True, slots=True)
class Printed:
    """Result of one run."""

    exit_code: int
    """exit code as shells have it"""
    over_output: bool
    """it printed more than Limits.output_kib"""
    stdout: bytes
    stderr: bytes


ENDED = Printed(137, False, b"", b"the program ended the process that started it")


def run_for_each(source: str, inputs: Sequence[bytes], limits: Limits) -> tuple[list[Printed], str | None]:
    """Return what became of the runs, as many as Limits.seconds sufficed for, all together; or else why the sandbox
    does not work. A run may print Limits.output_kib.
    """
    found: list[Printed] = []
    left = limits.seconds
    while len(found) < len(inputs) and left > 0:
        rest = list(inputs[len(found) :])
        most = limits.output_kib * 1024
        room = -(-(len(rest) * (most + _HEAD_BYTES) + len(BEGUN)) // 1024)
        program = Program(code_of("repeater"), (source, rest, most), "repeater.py", ("feed",))
        room_for = replace(limits, seconds=left, output_kib=room).restarted(bool(found))
        outcome = patiently(partial(run_program, program, b"", room_for, begins_with=BEGUN), _trouble)
        left -= outcome.seconds + (outcome.starting if found else 0.0)
        if (trouble := _trouble(outcome)) is not None:
            return found, None if found and left <= 0 else trouble
        records = list(_records(outcome.stdout[len(BEGUN) :]))[: len(rest)]
        found += records
        if outcome.timed_out:
            break
        if not records:  # otherwise the next one is the first of another sandbox, so that nothing but it can end that
            found.append(ENDED)
    return found, None


def _trouble(outcome: ProgramResult) -> str | None:
    """Say why no run of the program has begun; None when one has."""
    if outcome.trouble is not None or outcome.stdout.startswith(BEGUN):
        return outcome.trouble
    said = outcome.stderr.decode(errors="replace").strip()[-300:] or f"exit code {outcome.exit_code}"
    return f"the sandbox cannot begin a run: {said}"


def _records(said: bytes) -> Iterator[Printed]:
    """Split the output into records; one that is cut off is left out."""
    at = 0
    while (head := _HEAD.match(said, at)) is not None:
        code, over, out, err = (int(part) for part in head.groups())
        at = head.end() + out + err
        if at > len(said):
            return
        yield Printed(code, bool(over), said[head.end() : head.end() + out], said[head.end() + out : at])
