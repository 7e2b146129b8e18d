"""GPUs: what the driver shows, what torch can use, and whether the two fit together."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from lpo_ray.tools.doctor.deadlines import SMI_SECONDS
from lpo_ray.tools.doctor.findings import Finding, State, Surroundings, judge
from lpo_ray.tools.doctor.versions import cuda_of_torch

DRIVER = "libcuda.so.1"
"""the driver's own library, which needs no GPU to say its version"""
FIELDS = ("name", "driver_version", "memory.total", "memory.used")


@dataclass(frozen=True, slots=True)
class Device:
    """GPU as nvidia-smi shows it. Memory in MiB."""

    name: str
    driver: str
    memory_total: int
    memory_used: int


@dataclass(frozen=True, slots=True)
class TorchCuda:
    """CUDA as torch has it."""

    runtime: str | None
    """version that torch was built with, such as "12.8"; None: a CPU build"""
    driver: str | None
    """newest version that the driver supports; None: no driver"""
    devices: int
    nccl: str | None


def check_gpus(_: Surroundings) -> list[Finding]:
    """Check gpus, driver and nccl."""
    found, seen = torch_cuda(), driver_devices()
    return [gpus(seen, found), driver(found), nccl(found)]


def gpus(seen: Sequence[Device], found: TorchCuda) -> Finding:
    """Check whether torch sees the GPUs that the driver shows, and whether they are free."""
    names = [f"{device.name} ({device.memory_used} of {device.memory_total} MiB in use)" for device in seen]
    text = f"{', '.join(names) or 'none'}; torch sees {found.devices}"
    expected = "torch sees what the driver shows, and it is free"
    if found.runtime is None:
        problem = State.warn if seen else None
        return judge("GPUs", problem, f"{text} (a CPU build)", expected, "to use them: make setup ACCEL=cuda")
    if not seen and not found.devices:
        advice = "this is the CUDA stack: without a GPU take make setup ACCEL=cpu, or fix the driver"
        return Finding("GPUs", State.warn, text, expected, advice)
    if not found.devices:
        advice = "unset CUDA_VISIBLE_DEVICES, start the container with --gpus all, or update the driver"
        return Finding("GPUs", State.fail, text, expected, advice)
    busy = any(device.memory_used > device.memory_total // 10 for device in seen)
    return judge("GPUs", State.warn if busy else None, text, expected, "other processes use them: see nvidia-smi")


def driver(found: TorchCuda) -> Finding:
    """Check whether the driver is new enough for torch's CUDA. A newer minor version than the driver's works within a
    major one, except for what is compiled at run time.
    """
    name, expected = "driver and CUDA", f"a driver for CUDA {found.runtime}"
    if found.runtime is None:
        return Finding(name, State.ok, "not needed: a CPU build of torch", "a driver where torch has CUDA")
    advice = f"update the driver, or install a torch built for CUDA {found.driver or 'that it supports'}"
    if found.driver is None:
        return Finding(name, State.warn, f"no driver for CUDA {found.runtime}", expected, advice)
    have, need = _numbers(found.driver), _numbers(found.runtime)
    problem = State.warn if have < need else None
    if have[0] < need[0]:
        problem = State.fail
    return judge(name, problem, f"the driver supports up to CUDA {found.driver}", expected, advice)


def nccl(found: TorchCuda) -> Finding:
    """Report which NCCL torch brings along."""
    if found.runtime is None:
        return Finding("NCCL", State.ok, "not needed: a CPU build of torch", "one where torch has CUDA")
    problem = None if found.nccl else State.fail
    return judge("NCCL", problem, found.nccl or "none", "one that torch was built with", "reinstall torch")


def torch_cuda() -> TorchCuda:
    """Read CUDA as torch has it in this process; a CPU build is not imported."""
    if cuda_of_torch() is None:
        return TorchCuda(None, None, 0, None)
    import torch

    version = ".".join(map(str, torch.cuda.nccl.version()))  # pyright: ignore[reportAttributeAccessIssue]
    return TorchCuda(torch.version.cuda, driver_supports(), torch.cuda.device_count(), version)


def driver_supports() -> str | None:
    """Ask the driver for the newest CUDA that it supports; None without a driver. torch no longer tells."""
    number = ctypes.c_int(0)
    try:
        failed = ctypes.CDLL(DRIVER).cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):  # no such library, or none of a driver
        return None
    return None if failed or not number.value else f"{number.value // 1000}.{number.value % 1000 // 10}"


def driver_devices() -> list[Device]:
    """List the GPUs that nvidia-smi shows; none without it. Raises RuntimeError with its words when it fails."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    finished = subprocess.run(query, capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    if finished.returncode:
        said = (finished.stdout + finished.stderr).strip().replace("\n", " ")
        raise RuntimeError(f"nvidia-smi ended with {finished.returncode}: {said}")
    return [parse_device(line) for line in finished.stdout.splitlines() if line.strip()]


def parse_device(line: str) -> Device:
    """Parse a line such as "NVIDIA H100 80GB HBM3, 550.54.15, 81559, 4". Memory that the driver does not tell counts as
    0.
    """
    name, version, total, used = (part.strip() for part in line.rsplit(",", 3))
    return Device(name, version, *(int(number) if number.isdecimal() else 0 for number in (total, used)))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))
