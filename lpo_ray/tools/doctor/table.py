"""The table of checks on one machine, and how findings are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from lpo_ray.tools.doctor.deadlines import (
    COLLECTIVE_SECONDS,
    ENGINE_SECONDS,
    GRACE,
    IMPORT_SECONDS,
    OUTER,
    SANDBOX_SECONDS,
    SMI_SECONDS,
)
from lpo_ray.tools.doctor.findings import Check, Deferred, Finding, State, passed

CHECKS = (
    Check("Python", Deferred("versions", "check_python"), 10),
    Check("packages", Deferred("versions", "check_packages"), 30),
    Check("package actors", Deferred("ownership", "check_owner"), 30),
    Check("imports", Deferred("stack", "check_imports"), IMPORT_SECONDS + OUTER),
    Check("vllm's extension", Deferred("stack", "check_extension"), IMPORT_SECONDS + OUTER),
    Check("GPUs", Deferred("gpus", "check_gpus"), IMPORT_SECONDS + SMI_SECONDS + OUTER),
    Check("Ray's start", Deferred("machine", "check_ray_start"), 10),
    Check("/dev/shm", Deferred("machine", "check_shared_memory"), 10),
    Check("disk", Deferred("machine", "check_disk"), 10),
    Check("memory", Deferred("machine", "check_memory"), 10),
    Check("file descriptors", Deferred("machine", "check_descriptors"), 10),
    Check("ports", Deferred("machine", "check_ports"), 10),
    Check("hostname", Deferred("machine", "check_hostname"), 20),
    Check("sandbox", Deferred("sandbox", "check_sandbox"), SANDBOX_SECONDS),
    Check("gloo collective", Deferred("collective", "check_gloo"), COLLECTIVE_SECONDS + GRACE + OUTER, slow=True),
    Check("NCCL collective", Deferred("collective", "check_nccl"), COLLECTIVE_SECONDS + GRACE + OUTER, slow=True),
    Check("engine", Deferred("stack", "check_engine"), ENGINE_SECONDS + OUTER, slow=True),
)
WIDTH = 160
"""width of the table where there is no terminal"""
STYLES = {State.ok: "green", State.warn: "yellow", State.fail: "bold red"}


def render(groups: Mapping[str, Sequence[Finding]]) -> Table:
    """Render all findings, a block of rows for each group (a node, or what is between them)."""
    table = Table(title_justify="left", show_lines=False)
    for column, ratio in (("check", 3), ("", 1), ("found", 8), ("expected", 6), ("what to do", 6)):
        table.add_column(column, ratio=ratio, overflow="fold")
    for group, findings in groups.items():
        table.add_section()
        table.add_row(Text(group, style="bold"))
        for finding in findings:
            state = Text(finding.state.value, style=STYLES[finding.state])
            rest = (finding.found, finding.expected, finding.advice)
            table.add_row(Text(finding.name), state, *map(Text, rest))
    return table


def as_json(groups: Mapping[str, Sequence[Finding]]) -> dict[str, object]:
    """Write for programs whether nothing fails, and every finding by its group."""
    return {
        "passed": passed(groups),
        "groups": {
            group: [{**asdict(finding), "state": finding.state.value} for finding in findings]
            for group, findings in groups.items()
        },
    }
