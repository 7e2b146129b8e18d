"""Checks of what a machine gives a run: shared memory, disk, memory, file descriptors, ports, its name."""

from __future__ import annotations

import resource
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from lpo_ray.common.home import writable
from lpo_ray.run.ray_needs import needs
from lpo_ray.tools.doctor.findings import Finding, State, Surroundings, judge

GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_NEEDED = GIB
"""the least cluster.object_store_gib; vLLM's and NCCL's own buffers are far smaller"""
DISK_NEEDED, DISK_WANTED = GIB, 10 * GIB
MEMORY_NEEDED, MEMORY_WANTED = 2 * GIB, 6 * GIB
"""the quickstart with its engine, two ranks and the object store takes about 5 GiB"""
DESCRIPTORS_NEEDED, DESCRIPTORS_WANTED = 1024, 4096
HEAD_PORTS = {6379: "Ray's head", 8265: "Ray's dashboard and jobs", 10001: "Ray's client server"}
PORTS_WANTED = 1000
"""ephemeral ones: each Ray worker takes a few"""


@dataclass(frozen=True, slots=True)
class Folder:
    """Folder where something is written: the folder itself, or the part of its path that is there."""

    path: Path
    existing: Path
    free: int
    writable: bool


def check_ray_start(_: Surroundings) -> list[Finding]:
    """Check what Ray needs of the process that starts it."""
    return [judge(n.name, None if n.met else State.fail, n.found, n.expected, n.advice) for n in needs()]


def check_shared_memory(_: Surroundings) -> list[Finding]:
    """Check shared memory."""
    usage = shutil.disk_usage(SHARED_MEMORY)
    return [shared_memory(usage.total, usage.free)]


def check_disk(surroundings: Surroundings) -> list[Finding]:
    """Check the disk of the folders that a run writes to."""
    folders = {"run": surroundings.run_dir, "temp": surroundings.temp_dir, "cache": surroundings.cache_dir}
    return [disk(f"disk: {name} folder", _folder(path)) for name, path in folders.items()]


def check_memory(_: Surroundings) -> list[Finding]:
    """Check memory and swap."""
    physical, swapped = psutil.virtual_memory(), psutil.swap_memory()
    total, available = within_cgroup(physical.total, physical.available, Path("/sys/fs/cgroup"))
    return [memory(total, available), swap(swapped.total, swapped.used)]


def check_descriptors(_: Surroundings) -> list[Finding]:
    """Check the limit on file descriptors."""
    return [descriptors(*resource.getrlimit(resource.RLIMIT_NOFILE))]


def check_ports(_: Surroundings) -> list[Finding]:
    """Check the ports of Ray's head and the ephemeral ports."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return [head_ports({port: owner for port in HEAD_PORTS if (owner := listener(port))}), ephemeral_ports(low, high)]


def check_hostname(_: Surroundings) -> list[Finding]:
    """Check the host's name."""
    name = socket.gethostname()
    try:
        found = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None)})
    except OSError as error:
        return [hostname(name, [], str(error))]
    return [hostname(name, found)]


def shared_memory(total: int, free: int) -> Finding:
    """Judge the size of shared memory: Ray keeps its objects there, and falls back to a far slower file when it is too
    small.
    """
    problem = None if free >= SHARED_MEMORY_NEEDED else State.warn
    if total < SHARED_MEMORY_NEEDED:
        problem = State.fail
    advice = "in a container: --shm-size=2g or more; else remount it larger, or remove what is left in it"
    found = f"{gib(total)}, {gib(free)} of it free"
    return judge("/dev/shm", problem, found, f"{gib(SHARED_MEMORY_NEEDED)} (cluster.object_store_gib)", advice)


def disk(name: str, folder: Folder) -> Finding:
    """Judge the room on disk, where checkpoints, samples and Ray's session files are written."""
    where = str(folder.path) if folder.existing == folder.path else f"{folder.path} (to be made in {folder.existing})"
    found = f"{where}: {gib(folder.free)} free"
    expected = f"{gib(DISK_WANTED)} free, writable; a checkpoint has 16 bytes a parameter"
    if not folder.writable:
        return Finding(name, State.fail, f"{found}, not writable", expected, "give this user the right, or elsewhere")
    problem = None if folder.free >= DISK_WANTED else State.warn
    if folder.free < DISK_NEEDED:
        problem = State.fail
    return judge(name, problem, found, expected, "make room, or set run.dir, TMPDIR or LPO_RAY_CACHE to another disk")


def memory(total: int, available: int) -> Finding:
    """Judge the memory of the machine, or of the container where that is less."""
    problem = None if available >= MEMORY_WANTED else State.warn
    if available < MEMORY_NEEDED:
        problem = State.fail
    found, expected = f"{gib(available)} of {gib(total)} available", f"{gib(MEMORY_WANTED)} for the quickstart"
    return judge("memory", problem, found, expected, "end what else runs here, or lower rollout.kv_cache_gib")


def swap(total: int, used: int) -> Finding:
    """Judge swap: pages of a policy that were swapped out come back one by one."""
    found = f"{gib(used)} of {gib(total)} in use" if total else "none"
    problem = State.warn if used > GIB else None
    return judge("swap", problem, found, "little in use", "memory is or was short: steps may take many times as long")


def within_cgroup(total: int, available: int, cgroup: Path) -> tuple[int, int]:
    """Return total and available memory under the container's own limit; the machine's without one."""
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return total, available
    if not limit.isdecimal() or int(limit) >= total:
        return total, available
    return int(limit), min(available, int(limit) - int(used))


def descriptors(soft: int, hard: int) -> Finding:
    """Judge the limit on file descriptors: every connection between Ray's processes takes one."""
    unlimited = resource.RLIM_INFINITY
    problem = None if soft == unlimited or soft >= DESCRIPTORS_WANTED else State.warn
    if soft != unlimited and soft < DESCRIPTORS_NEEDED:
        problem = State.fail
    text = [str(limit) if limit != unlimited else "unlimited" for limit in (soft, hard)]
    advice = "ulimit -n 65536 before `ray start` or lpo-ray; LimitNOFILE= in a systemd unit"
    return judge("file descriptors", problem, f"{text[0]} (at most {text[1]})", f"{DESCRIPTORS_WANTED}", advice)


def head_ports(taken: Mapping[int, str]) -> Finding:
    """Judge the ports of ``ray start --head``: free, or Ray's already."""
    foreign = [port for port, owner in taken.items() if not owner.startswith(("ray", "gcs_server"))]
    found = ", ".join(f"{port} ({HEAD_PORTS[port]}): {owner}" for port, owner in taken.items()) or "all free"
    expected = f"{', '.join(map(str, HEAD_PORTS))} free, or Ray's"
    advice = "a head that starts here needs other ones: ray start --head --port=... --dashboard-port=..."
    return judge("ports of a Ray head", State.warn if foreign else None, found, expected, advice)


def ephemeral_ports(low: int, high: int) -> Finding:
    """Judge the ports that the kernel gives out: Ray workers, process groups and vLLM take theirs from them."""
    count = high - low + 1
    problem = None if count >= PORTS_WANTED else State.fail
    advice = "sysctl net.ipv4.ip_local_port_range='32768 60999'"
    return judge("free ports", problem, f"{low} to {high}: {count}", f"{PORTS_WANTED} or more", advice)


def hostname(name: str, addresses: Sequence[str], error: str = "") -> Finding:
    """Judge the host's own name, by which Gloo finds its network interface."""
    expected = "an address that other nodes reach"
    advice = f"add a line with this machine's address and {name!r} to /etc/hosts"
    if not addresses:
        return Finding("hostname", State.fail, f"{name}: {error or 'no address'}", expected, advice)
    loopback = all(address.startswith("127.") or address == "::1" for address in addresses)
    found = f"{name}: {', '.join(addresses)}"
    return judge(
        "hostname", State.warn if loopback else None, found, expected, f"nothing on one machine; for several, {advice}"
    )


def listener(port: int) -> str:
    """Name who listens on a port of this machine, as far as this user may see; empty when it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            return ""
        except OSError:
            pass
    try:
        owners = [c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr[1] == port and c.pid]
        return psutil.Process(owners[0]).name() if owners else "another user's process"
    except psutil.Error:
        return "another user's process"


def gib(num_bytes: int) -> str:
    """Write bytes for people."""
    return f"{num_bytes / GIB:.1f} GiB"


def _folder(path: Path) -> Folder:
    absolute = path.absolute()
    existing = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    return Folder(absolute, existing, shutil.disk_usage(existing).free, writable(existing))
