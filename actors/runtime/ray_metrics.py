"""The run's metrics as Ray metrics: every node's agent offers them to Prometheus, as ``ray_lpo_ray_...``."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram
from typing_extensions import override

from lpo_ray.telemetry.metrics import Value
from lpo_ray.telemetry.prometheus import BOUNDARIES, EXPORTED, Exported, Sample, samples
from lpo_ray.telemetry.sinks import MetricsSink

REFRESH_SECONDS = 5.0
"""Ray's agent forgets a gauge that was not set for two report intervals (20 s); a step may take longer"""


class RayMetrics(MetricsSink):
    """MetricsSink over Ray's metrics. Make it in a process that is connected to Ray."""

    def __init__(self, run: str, refresh_seconds: float = REFRESH_SECONDS) -> None:
        """``run``: tag of all metrics."""
        self._instruments = {name: _instrument(name, row, run) for name, row in EXPORTED.items()}
        self._gauges: dict[tuple[str, frozenset[tuple[str, str]]], Sample] = {}
        """newest sample of each gauge"""
        self._refresh_seconds = refresh_seconds
        self._ended = threading.Event()
        self._lock = threading.Lock()

    @override
    def resumed(self, step: int) -> None:
        self.append({"step": step})
        threading.Thread(target=self._keep_gauges, name="gauges", daemon=True).start()

    @override
    def append(self, metrics: Mapping[str, Value]) -> None:
        for sample in samples(metrics):
            self._record(sample)

    @override
    def evaluated(self, step: int, scores: Mapping[str, float]) -> None:
        self.append(dict(scores))

    @override
    def changed(self, values: Mapping[str, int]) -> None:
        self.append(dict(values))

    @override
    def close(self) -> None:
        self._ended.set()  # the gauges age out

    def _record(self, sample: Sample) -> None:
        instrument, tags = self._instruments[sample.name], dict(sample.tags)
        if isinstance(instrument, Gauge):
            with self._lock:
                self._gauges[sample.name, frozenset(tags.items())] = sample
                instrument.set(sample.value, tags=tags)
        elif isinstance(instrument, Histogram):
            instrument.observe(sample.value, tags=tags)
        elif sample.value > 0:  # a counter takes no zero
            instrument.inc(sample.value, tags=tags)

    def _keep_gauges(self) -> None:
        while not self._ended.wait(self._refresh_seconds):
            with self._lock:
                for name, tags, value in self._gauges.values():
                    instrument = self._instruments[name]
                    assert isinstance(instrument, Gauge)
                    instrument.set(value, tags=dict(tags))


def _instrument(name: str, row: Exported, run: str) -> Counter | Gauge | Histogram:
    keys = ("run",) if row.tag is None else ("run", row.tag)
    text = f"{row.help} ({row.unit})"
    if row.kind == "histogram":
        found = Histogram(name, text, list(BOUNDARIES), keys)
    else:
        found = (Counter if row.kind == "counter" else Gauge)(name, text, keys)
    return found.set_default_tags({"run": run})
