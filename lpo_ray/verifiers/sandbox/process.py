"""A Python program in a sandbox of either kind: started, and killed with all that it started."""

from __future__ import annotations

import contextlib
import marshal
import math
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, BinaryIO

from lpo_ray.verifiers.sandbox import kinds
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.sandbox.memory import Group, make_group
from lpo_ray.verifiers.sandbox.seccomp import seccomp_filter

NAME = "lpo-ray-sandbox"
"""mark in the command line of every sandboxed process"""
READY = b"\x06ready\n"
"""what each writes to stdout before the program begins"""
_INSIDE = "lpo_ray.verifiers.sandbox.inside"


@dataclass(frozen=True, slots=True)
class Program:
    """Python, as source or compiled, and what it finds in the global ARGUMENT, which marshal can write."""

    source: str | CodeType
    argument: Any = None
    name: str = "program.py"
    modules: tuple[str, ...] = ()
    """modules of ``inside`` that it imports"""


class Sandboxed(subprocess.Popen[bytes]):
    """The process that holds a program."""

    group: Group | None = None
    """control group that limits its memory and that of all it starts"""


@cache
def text_of(module: str) -> str:
    """Return the source of a module of ``inside``."""
    return (Path(__file__).parent / "inside" / f"{module}.py").read_text()


@cache
def code_of(module: str) -> CodeType:
    """Compile a module of ``inside``; the interpreter there, being the same, can run it."""
    return compile(text_of(module), f"{module}.py", "exec", dont_inherit=True)


def start(kind: str, program: Program, limits: Limits, stdin: int, stdout: int, stderr: int,
          fds: Sequence[int] = ()) -> Sandboxed:  # fmt: skip
    """Start a program in a sandbox; ``kind`` is bubblewrap or rlimit. ``fds`` stay open in the program, under their
    numbers. Raises OSError.
    """
    filter_ = seccomp_filter()
    confined = kind == kinds.RLIMIT
    # without a filter, open_by_handle_at would reach all files with this right
    search = not confined and filter_ is not None and kinds.closed_to_others(kind)
    used = [*program.modules, *["confine"] * (confined or search)]
    job = {
        "source": program.source, "argument": program.argument, "name": program.name, "fds": list(fds), "ready": READY,
        "modules": {f"{_INSIDE}.{name}": code_of(name) for name in used},
        "path": list(kinds.packages()), "user": kinds.program_user(), "search": search,
        "confine": kinds.confinement(filter_) if confined else None,
        "cpu_seconds": math.ceil(limits.seconds) + 1, "memory_bytes": limits.memory_mib * 2**20,
        "processes": limits.processes, "file_bytes": 0 if confined else limits.files_mib * 2**20,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        job_fd = stack.enter_context(_memory(marshal.dumps(job))).fileno()
        passed = [job_fd, *fds]
        before: list[str] = []
        if not confined:
            seccomp_fd = stack.enter_context(_memory(filter_)).fileno() if filter_ is not None else None
            passed += [seccomp_fd] if seccomp_fd is not None else []
            before = kinds.bubblewrap_command(limits.files_mib * 2**20, seccomp_fd, search=search)
        python = [kinds.interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", text_of("bootstrap"), NAME, str(job_fd)]
        group = make_group(limits.total_memory_mib * 2**20)
        try:
            process = Sandboxed(
                [*(group.command() if group else ()), *before, *python], stdin=stdin, stdout=stdout, stderr=stderr,
                pass_fds=passed, cwd="/", env=kinds.ENVIRONMENT, start_new_session=True,
            )  # fmt: skip
        except OSError:
            if group is not None:
                group.remove()
            raise
        process.group = group
        return process


def kill(process: Sandboxed) -> int:
    """Kill the process and its group, the members of which cannot leave it; their namespace, if they have one, ends
    with them. Exit code: 128 + n when signal n ended it.
    """
    if process.returncode is None:  # not waited for yet, so the number is still its own
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    if process.group is not None:
        process.group.remove()
    return code if code >= 0 else 128 - code


def _memory(content: bytes) -> BinaryIO:
    file = os.fdopen(os.memfd_create("sandbox", os.MFD_CLOEXEC), "w+b")
    file.write(content)
    file.flush()
    file.seek(0)
    return file
