"""The table of checks on one machine, and how findings are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from lpo_ray.tools.doctor.collective import GRACE, check_gloo, check_nccl
from lpo_ray.tools.doctor.collective import SECONDS as COLLECTIVE_SECONDS
from lpo_ray.tools.doctor.findings import Check, Finding, State, passed
from lpo_ray.tools.doctor.gpus import SMI_SECONDS, check_gpus
from lpo_ray.tools.doctor.machine import (
    check_descriptors,
    check_disk,
    check_hostname,
    check_memory,
    check_ports,
    check_shared_memory,
)
from lpo_ray.tools.doctor.ownership import check_owner
from lpo_ray.tools.doctor.sandbox import SECONDS as SANDBOX_SECONDS
from lpo_ray.tools.doctor.sandbox import check_sandbox
from lpo_ray.tools.doctor.stack import ENGINE_SECONDS, IMPORT_SECONDS, check_engine, check_extension, check_imports
from lpo_ray.tools.doctor.versions import check_packages, check_python

OUTER = 10.0
"""time that a check gets beyond the deadline of the process it runs, so that the process's own account arrives"""
CHECKS = (
    Check("Python", check_python, 10),
    Check("packages", check_packages, 30),
    Check("package actors", check_owner, 30),
    Check("imports", check_imports, IMPORT_SECONDS + OUTER),
    Check("vllm's extension", check_extension, IMPORT_SECONDS + OUTER),
    Check("GPUs", check_gpus, SMI_SECONDS + OUTER),
    Check("/dev/shm", check_shared_memory, 10),
    Check("disk", check_disk, 10),
    Check("memory", check_memory, 10),
    Check("file descriptors", check_descriptors, 10),
    Check("ports", check_ports, 10),
    Check("hostname", check_hostname, 20),
    Check("sandbox", check_sandbox, SANDBOX_SECONDS),
    Check("gloo collective", check_gloo, COLLECTIVE_SECONDS + GRACE + OUTER, slow=True),
    Check("NCCL collective", check_nccl, COLLECTIVE_SECONDS + GRACE + OUTER, slow=True),
    Check("engine", check_engine, ENGINE_SECONDS + OUTER, slow=True),
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
