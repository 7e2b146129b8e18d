"""Names under which Prometheus finds the metrics."""

from __future__ import annotations

from lpo_ray.telemetry.prometheus import EXPORTED


def exported_names(name: str) -> set[str]:
    """What Ray makes of a row: its prefix, and what Prometheus adds to a histogram."""
    if EXPORTED[name].kind == "histogram":
        return {f"ray_{name}_{part}" for part in ("bucket", "sum", "count")}
    return {f"ray_{name}"}
