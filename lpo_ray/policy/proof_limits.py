"""How far an engine's answers to the probe may be from the learner's: by what they are when both have equal weights.

Engine and learner are two programs. In bf16 they differ by hundredths of a nat, more for some models, tensor
parallelism and quantisation, and in a mixture of experts rounding sends a few tokens elsewhere. So the difference is
measured before any weights change, when both have loaded the model's folder. That is the *baseline*; it is kept in the
run's folder, and every engine of the run is held to it, whenever it starts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lpo_ray.common.files import make_folder, write_json
from lpo_ray.errors import ConfigError
from lpo_ray.policy.weights_proof import Agreement
from lpo_ray.records import IntArray

logger = logging.getLogger(__name__)
FILE = "proof.json"
"""in the run's folder"""
TYPICAL_FACTOR, LARGEST_FACTOR = 3.0, 10.0
"""limits in units of the baseline. Good engines had at most 2.2 times its typical difference, over models, dtypes and
weights that had moved by more than their own size. One tensor in a wrong layout gave SmolLM2 22 times in the median,
and 1.5 to 2.9 times for four tensors of its last layer (tests/benchmarks/README.md).
"""
LEAST_SURPRISE = 0.1
"""nats a token, below which text counts as likely"""
MIXTURE_LARGEST = 5.0
"""nats by which a single log-prob of a mixture of experts may differ, whatever the baseline: a token that rounding
sends to another expert"""


@dataclass(frozen=True, slots=True)
class Rounding:
    """Bounds of what rounding does in a precision, in nats."""

    least: Agreement
    """limits are never narrower: which tokens round worst changes with the weights"""
    most: float
    """typical difference above which engine and learner do not compute the same model"""


FULL, HALF = Rounding(Agreement(3e-5, 1e-3), 1e-3), Rounding(Agreement(3e-3, 0.5), 0.2)


@dataclass(slots=True)
class ProofLimits:
    """Limits of a run's proof, and the probe that they are for."""

    probe: list[IntArray]
    """sequences whose log-probs engines and learner compare"""
    tolerance: float | None
    """transport.tolerance: of the largest difference, in place of the baseline"""
    arithmetic: Mapping[str, str | int]
    """what decides how both sides round: a baseline is of one arithmetic"""
    full: bool
    """both sides compute in float32"""
    mixture: bool
    """the model is a mixture of experts"""
    file: Path | None = None
    """where the baseline is kept; None: nowhere"""
    baseline: Agreement | None = None
    reaches_all: bool = True
    """a publish brings all weights of an engine, as far as is known: nothing else was seen"""

    @property
    def proves_blank(self) -> bool:
        """Whether an engine that is built without weights, and published to, is held to what engines had that had
        loaded them.
        """
        return self.baseline is not None and self.reaches_all

    def limits(self, surprise: float) -> Agreement:
        """Return the largest differences that are still rounding, for text of this ``surprise``: a policy that is led
        astray finds the probe less likely than at the start, and rounds more. Without a baseline they are those of any
        model in this precision.
        """
        if self.tolerance is not None:
            return Agreement(self.tolerance, self.tolerance)
        least, most, base = self._rounding.least, self._rounding.most, self.baseline
        largest = max(least.largest, MIXTURE_LARGEST if self.mixture else 0.0)
        if base is None:
            return Agreement(most, max(largest, LARGEST_FACTOR * most))
        growth = max(1.0, surprise / max(base.surprise, LEAST_SURPRISE))
        typical = max(least.typical, TYPICAL_FACTOR * growth * base.typical)
        return Agreement(typical, max(largest, LARGEST_FACTOR * growth * base.largest))

    def excess(self, found: Agreement) -> tuple[float, float, str] | None:
        """Return the difference that is too large, its limit, and what it is in words; None: they agree."""
        limits, base = self.limits(found.surprise), self.baseline
        if self.tolerance is not None:
            words = "the largest difference, with transport.tolerance set"
            return None if found.largest <= self.tolerance else (found.largest, self.tolerance, words)
        where = (
            "there is no baseline of equal weights yet"
            if base is None
            else f"with equal weights typical was {base.typical:.3g}, largest {base.largest:.3g}"
        )
        if not found.typical <= limits.typical:
            return found.typical, limits.typical, f"the typical difference; {where}"
        if not found.largest <= limits.largest:
            return found.largest, limits.largest, f"the largest difference; {where}"
        return None

    @property
    def between_ranks(self) -> float:
        """Typical difference that the learner's ranks may have, which may be on devices of several kinds."""
        return self.limits(0.0).typical

    def measured(self, agreements: Iterable[Agreement]) -> None:
        """Take the baseline from engines that have the learner's weights, unless there is one. That of the engine
        nearest to the learner counts; the others are held to it. One beyond all rounding is not taken.
        """
        best = min(agreements, key=lambda found: found.typical, default=None)
        if (
            self.baseline is None
            and best is not None
            and best.typical <= self._rounding.most
            and np.isfinite(best.largest)
        ):
            self.baseline = best
            self._write()

    def reached_not(self) -> None:
        """Note, for the engines to come and for a run that continues, that a publish does not bring all weights."""
        self.reaches_all = False
        self._write()

    def figures(self, found: Agreement) -> dict[str, float]:
        """Figures for metrics: what was measured, the baseline, the limits."""
        base = {} if self.baseline is None else {"baseline": self.baseline.typical}
        limits = self.limits(found.surprise)
        return {"typical": found.typical, **base, "typical_limit": limits.typical, "limit": limits.largest}

    @property
    def _rounding(self) -> Rounding:
        return FULL if self.full else HALF

    def _write(self) -> None:
        if self.file is None or self.baseline is None:
            return
        make_folder(self.file.parent)
        write_json(self.file, self._to_plain(self.baseline))

    def _to_plain(self, baseline: Agreement) -> dict[str, object]:
        return {
            "baseline": asdict(baseline),
            "reaches_all": self.reaches_all,
            "arithmetic": dict(self.arithmetic),
            "probe": [sequence.tolist() for sequence in self.probe],
        }


def open_limits(file: Path, fresh: ProofLimits) -> ProofLimits:
    """Continue with the probe and baseline that ``file`` has, if it does; otherwise they are those of ``fresh``. A
    baseline of another arithmetic is measured again. Raises ConfigError when the file cannot be read.
    """
    fresh.file = file
    if not file.exists():
        return fresh
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        probe = [np.asarray(sequence, dtype=np.int64) for sequence in found["probe"]]
        baseline = Agreement(**{name: float(found["baseline"][name]) for name in ("typical", "largest", "surprise")})
        arithmetic = dict(found["arithmetic"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError(
            f"{file} cannot be read ({type(error).__name__}: {error}); expected the baseline of the proof of weights, "
            "as this run wrote it: remove the file, and it is measured again"
        ) from error
    if arithmetic == dict(fresh.arithmetic):
        fresh.probe, fresh.baseline = probe, baseline
        fresh.reaches_all = bool(found.get("reaches_all", True))
    else:
        logger.warning("the proof's baseline is measured again: it was for %s, now %s", arithmetic, fresh.arithmetic)
    return fresh


def is_mixture(tensors: Iterable[str]) -> bool:
    """Whether tensors of these names are of a mixture of experts."""
    return any("expert" in name for name in tensors)
