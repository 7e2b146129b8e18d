"""From the axes of a grid to arms: each setting of the other axes with every divergence, baseline and control."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lpo_ray.errors import ConfigError

DIVERGENCE = "objective.divergence"
BASELINE = "first_order"
"""GRPO, Dr.GRPO, RLOO or MaxRL by the target temperature"""
CONTROL = "first_order_beta"
"""the baseline with forward KL's weights of the prompts: what is left between it and forward KL is the projection"""
SCHEDULE = "objective.schedule"
OF_A_RUN = ("run.name", "run.dir", "run.seed", "run.resume")
_CHANGING = re.compile(r"[^/@]+(/[^/@]+@\d+)+")


@dataclass(frozen=True, slots=True)
class Arm:
    """One point of the grid.

    Example:
        Arm("forward_kl", (("objective.target_temperature", "one"),))

    """

    divergence: str
    """or several, one after the other: forward_kl/reverse_kl@20 changes to reverse KL at step 20"""
    setting: tuple[tuple[str, str], ...]
    """key and value of every other axis; arms of one setting differ in the divergence alone"""

    @property
    def overrides(self) -> tuple[str, ...]:
        """Overrides that make the configuration that of this arm."""
        return tuple(f"{key}={value}" for key, value in (*self._projection(), *self.setting))

    @property
    def is_schedule(self) -> bool:
        """Whether the arm's divergence changes in a run."""
        return _CHANGING.fullmatch(self.divergence) is not None

    def _projection(self) -> list[tuple[str, str]]:
        if not self.is_schedule:
            return [(DIVERGENCE, self.divergence)]
        first, *later = self.divergence.split("/")
        changes = [f"{{from_step: {step}, divergence: {name}}}" for name, step in (each.split("@") for each in later)]
        return [(DIVERGENCE, first), (SCHEDULE, f"[{', '.join(changes)}]")]

    @property
    def name(self) -> str:
        """Name for folders."""
        parts = (self.divergence, *(value for _, value in self.setting))
        return "-".join(re.sub(r"[^\w.+-]+", "_", part) for part in parts)

    @property
    def label(self) -> str:
        """Name for readers."""
        return ", ".join((self.divergence, *(value for _, value in self.setting)))

    @property
    def setting_label(self) -> str:
        """Values for readers, of which axes_label has the names."""
        return ", ".join(value for _, value in self.setting) or "as configured"

    @property
    def axes_label(self) -> str:
        """Names of the axes for readers, such as "target_temperature"."""
        return ", ".join(key.rpartition(".")[2] for key, _ in self.setting) or "setting"


def axes_of(texts: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Parse axes (key -> its values), and what has one value only, which is an override. Raises ConfigError.

    A text is "key=value,value"; several may stand in one, with a space between. Commas in brackets or quotes are
    part of a value.
    """
    axes: dict[str, tuple[str, ...]] = {}
    fixed: list[str] = []
    for text in texts:
        for part in re.split(r"\s+(?=[\w.]+=)", text.strip()):
            key, equals, listed = part.partition("=")
            values = tuple(value.strip() for value in _values(listed))
            if not equals or "." not in key or (len(values) > 1 and not all(values)):
                raise ConfigError(
                    f"{part!r} is no axis; expected section.key=value,value, as in {DIVERGENCE}=forward_kl,reverse_kl"
                )
            if len(values) == 1:
                fixed.append(part)
                continue
            if key in OF_A_RUN:
                raise ConfigError(f"{part!r}: compare sets {key} of each run; expected --seeds, --out, or another key")
            if key in axes or len(set(values)) < len(values):
                raise ConfigError(f"{part!r} repeats an axis or a value; expected each once")
            axes[key] = values
    return axes, tuple(fixed)


def arms_of(axes: Mapping[str, Sequence[str]], divergence: str) -> list[Arm]:
    """List all arms, setting by setting. ``divergence``: of the configuration, where the grid has no axis of it.
    Baseline and control are in every setting, asked for or not.
    """
    asked = axes.get(DIVERGENCE, (divergence,))
    divergences = [*asked, *(name for name in (CONTROL, BASELINE) if name not in asked)]
    others = [[(key, value) for value in values] for key, values in axes.items() if key != DIVERGENCE]
    arms = [Arm(name, setting) for setting in itertools.product(*others) for name in divergences]
    if len({arm.name for arm in arms}) < len(arms):
        raise ConfigError(f"arms of the grid have the same name, of {sorted(arm.name for arm in arms)}; rename a value")
    if SCHEDULE in axes and any(arm.is_schedule for arm in arms):
        raise ConfigError(f"{SCHEDULE} is an axis and a divergence of the grid a schedule too; expected one of them")
    return arms


def _values(listed: str) -> list[str]:
    """Split at commas outside quotes and brackets."""
    values, depth, quote = [""], 0, ""
    for character in listed:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and not quote and depth == 0:
            values.append("")
        else:
            values[-1] += character
    return values
