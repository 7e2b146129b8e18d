"""Which sandbox holds the programs that a policy writes, and what it lacks here."""

from __future__ import annotations

from collections.abc import Sequence

from lpo_ray.tools.doctor.findings import Finding, State, Surroundings, judge
from lpo_ray.verifiers.sandbox.kinds import BUBBLEWRAP, RLIMIT
from lpo_ray.verifiers.sandbox.program import missing, trouble_with


def check_sandbox(_: Surroundings) -> list[Finding]:
    """Check the sandbox."""
    trouble = {kind: trouble_with(kind) for kind in (BUBBLEWRAP, RLIMIT)}
    kind = next((kind for kind in (BUBBLEWRAP, RLIMIT) if trouble[kind] is None), None)
    return [sandbox(trouble, missing(kind) if kind else ())]


def sandbox(trouble: dict[str, str | None], lacks: Sequence[str]) -> Finding:
    """Judge the sandbox. ``trouble``: of each kind, None when it works. ``lacks``: protections that the first that
    works does not give. Only verifiers that run programs (unit_tests) need one.
    """
    if trouble[BUBBLEWRAP] is None:
        return Finding("sandbox", State.ok, "bubblewrap", "bubblewrap")
    found = f"bubblewrap does not work: {trouble[BUBBLEWRAP]}"
    if trouble[RLIMIT] is None:
        found = f"rlimit, which lacks {'; '.join(lacks) or 'nothing'} ({found})"
    else:
        found = f"{found}; rlimit does not work: {trouble[RLIMIT]}"
    advice = (
        "task.verifier=unit_tests needs it: install Debian's bubblewrap, and let its user make namespaces. On a "
        "machine: kernel.unprivileged_userns_clone=1. In Docker: --security-opt seccomp=unconfined --security-opt "
        "systempaths=unconfined (docker/compose.sandbox.yaml). On Kubernetes: seccompProfile {type: Unconfined} and "
        "procMount: Unmasked"
    )
    return judge("sandbox", State.warn, found, "bubblewrap", advice)
