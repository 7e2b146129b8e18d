"""What of a step's metrics deserves a line of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from lpo_ray.telemetry.metrics import Value


def alarms(metrics: Mapping[str, Value], entropy_alarm: float) -> Iterator[str]:
    """One sentence each. ``entropy_alarm``: nats of the mean token entropy, below which it is one."""
    step, entropy = metrics["step"], float(str(metrics["token_entropy"]))
    if metrics["skipped_updates"]:
        where = "; ".join(cast("list[str]", metrics["not_finite"])[:3])
        yield f"step {step}: {metrics['skipped_updates']} updates skipped, not finite: {where}"
    if entropy < entropy_alarm:
        yield (
            f"step {step}: token entropy is {entropy:.4f} nats, below telemetry.entropy_alarm={entropy_alarm:g}: the "
            "policy hardly explores any more"
        )
