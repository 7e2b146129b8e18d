"""Two ranks that add up a tensor, each a process of its own (``rank.py``): on one machine, or on two nodes."""

from __future__ import annotations

import socket
import time

from lpo_ray.tools.doctor.deadlines import COLLECTIVE_SECONDS, GRACE
from lpo_ray.tools.doctor.findings import Finding, State, Surroundings
from lpo_ray.tools.doctor.gpus import torch_cuda
from lpo_ray.tools.doctor.probe import ProbeResult, Running, failed

EXPECTED = "two ranks add up 4 MiB"
ADVICE = {
    "gloo": "a firewall between the ranks? set GLOO_SOCKET_IFNAME to the interface of this machine's address",
    "nccl": "look at it with NCCL_DEBUG=INFO; on virtual machines NCCL_P2P_DISABLE=1 may help",
}


def check_gloo(_: Surroundings) -> list[Finding]:
    """Check that two ranks on this machine add up."""
    return [local("gloo", COLLECTIVE_SECONDS)]


def check_nccl(_: Surroundings) -> list[Finding]:
    """Check that two ranks on two GPUs of this machine add up, where there are two."""
    count = torch_cuda().devices
    if count < 2:
        return [Finding("NCCL collective", State.ok, f"left out: {count} GPUs", "2 GPUs to try it on")]
    return [local("nccl", COLLECTIVE_SECONDS)]


def local(backend: str, seconds: float) -> Finding:
    """Run both ranks as processes of this machine."""
    host, port = "127.0.0.1", free_port("127.0.0.1")
    ranks = [start_rank(rank, host, port, backend, seconds) for rank in range(2)]
    deadline = time.monotonic() + seconds + GRACE
    return summary(f"{backend} collective", backend, [r.outcome(deadline - time.monotonic()) for r in ranks], seconds)


def start_rank(rank: int, host: str, port: int, backend: str, seconds: float) -> Running:
    """Start one rank as a process of this machine; ``host``: where rank 0 is met."""
    module = ["lpo_ray.tools.doctor.rank", str(rank), host, str(port), backend, str(seconds)]
    return Running(module, {"OMP_NUM_THREADS": "1"})


def summary(name: str, backend: str, outcomes: list[ProbeResult], seconds: float) -> Finding:
    """Sum up what both ranks found."""
    advice = ADVICE[backend]
    for rank, outcome in enumerate(outcomes):
        if not outcome.succeeded:
            finding = failed(name, outcome, seconds, EXPECTED, advice)
            return Finding(name, finding.state, f"rank {rank}: {finding.found}", EXPECTED, advice)
    sums = [outcome.result.get("sum") for outcome in outcomes]
    if sums != [3.0, 3.0]:
        return Finding(name, State.fail, f"1 + 2 came out as {sums}", EXPECTED, advice)
    taken = max(float(str(outcome.result["seconds"])) for outcome in outcomes)
    return Finding(name, State.ok, f"{1000 * taken:.1f} ms", EXPECTED)


def free_port(host: str) -> int:
    """Find a port that is free now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
