"""Devices by name, with what they can do: a literal table for sizes and times of a cluster that is not at hand.

From the vendor's data sheets, without sparsity: "NVIDIA H100 Tensor Core GPU" (SXM: 80 GB, 3.35 TB/s, 989 TFLOP/s bf16,
67 fp32, NVLink 900 GB/s), "NVIDIA H200 Tensor Core GPU" (SXM: 141 GB, 4.8 TB/s, the rest as H100), "NVIDIA A100 Tensor
Core GPU" (SXM: 40 or 80 GB, 1,555 or 2,039 GB/s, 312 TFLOP/s bf16, 19.5 fp32, NVLink 600 GB/s), "NVIDIA L40S" (48 GB,
864 GB/s, 362 TFLOP/s bf16, 91.6 fp32, PCIe Gen4 x16 64 GB/s). H20 has no public sheet; its figures (96 GB, 4.0 TB/s,
148 TFLOP/s bf16, 44 fp32, NVLink 900 GB/s) are those that resellers and the press agree on. ``memory_gib`` is what CUDA
reports as the total, which is less than the sheet's number of GB suggests. ``host_gib`` is of no sheet: it is rather
less than an eighth of a rented machine with eight of them. NVLink and PCIe count both directions on the
sheets; ``link`` is one of them.

"cpu" is one core and of no sheet: its FLOP/s are chosen so that rates.TRAIN_EFFICIENCY of them is what SmolLM2-135M
reaches in tests/benchmarks/results/learner.json, its link so that SmolLM2 is published as in transport.json, and its
overhead so that the quickstart's engine samples as fast as it does. Models as small as the quickstart's learn more
slowly than that says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lpo_ray.errors import ConfigError

TERA, GIGA = 1e12, 1e9
GPU_RESPONSE = 20e-6


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or one CPU core."""

    name: str
    memory_gib: float
    """of the device; infinite for a core, whose memory is its node's"""
    bf16: float
    """FLOP/s, dense"""
    fp32: float
    """FLOP/s, as torch multiplies float32 by default: not TF32"""
    bandwidth: float
    """bytes a second of its memory"""
    link: float
    """bytes a second to other devices of the node, one direction"""
    per_response: float
    """seconds of a decode step for each response in it: scheduling, seeded sampling, log-probs. For GPUs assumed"""
    host_gib: float = math.inf
    """memory of the host for each of its devices, where nobody said: what clouds rent out; infinite for a core"""

    def flops(self, dtype: str) -> float:
        """FLOP/s in ``dtype``, float32 or bfloat16."""
        return self.bf16 if dtype == "bfloat16" else self.fp32


DEVICES = {
    "H20": Device("H20", 95.0, 148 * TERA, 44 * TERA, 4.0 * TERA, 450 * GIGA, GPU_RESPONSE, 192.0),
    "H100": Device("H100", 79.1, 989 * TERA, 67 * TERA, 3.35 * TERA, 450 * GIGA, GPU_RESPONSE, 192.0),
    "H200": Device("H200", 139.8, 989 * TERA, 67 * TERA, 4.8 * TERA, 450 * GIGA, GPU_RESPONSE, 192.0),
    "A100": Device("A100", 79.1, 312 * TERA, 19.5 * TERA, 2.039 * TERA, 300 * GIGA, GPU_RESPONSE, 128.0),
    "A100-40": Device("A100-40", 39.4, 312 * TERA, 19.5 * TERA, 1.555 * TERA, 300 * GIGA, GPU_RESPONSE, 128.0),
    "L40S": Device("L40S", 44.4, 362 * TERA, 91.6 * TERA, 0.864 * TERA, 32 * GIGA, GPU_RESPONSE, 128.0),
    "cpu": Device("cpu", math.inf, 590 * GIGA, 290 * GIGA, 10 * GIGA, 2.4 * GIGA, 0.25e-3),
}
CPU = DEVICES["cpu"]


def device_named(name: str) -> Device:
    """Row of DEVICES, in any case. Raises ConfigError."""
    by_name = {key.lower(): device for key, device in DEVICES.items()}
    if (found := by_name.get(name.lower())) is None:
        raise ConfigError(f"device {name!r} is not known; expected one of {', '.join(DEVICES)}")
    return found


def device_reported(name: str, memory_gib: float | None = None) -> Device | None:
    """Find the row for a driver's or Ray's name of a GPU, such as "NVIDIA H100 80GB HBM3" or "A100"."""
    words = name.upper().replace("-", " ").replace("_", " ").split()
    found = next((device for key, device in DEVICES.items() if key.upper() in words), None)
    if found is DEVICES["A100"] and ("40G" in name.upper() or (memory_gib is not None and memory_gib < 60)):
        return DEVICES["A100-40"]
    return found
