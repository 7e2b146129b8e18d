"""Which runs a comparison is made of, and what they have in common. All is checked before the first one starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import OmegaConf

from lpo_ray.config import dump_config, load_config
from lpo_ray.config.schema import Config, RunConfig
from lpo_ray.errors import ConfigError
from lpo_ray.tools.compare.grid import Arm
from lpo_ray.tools.compare.outcome import is_finished

ALIKE = {
    "model": ("model",),
    "task and held-out prompts": ("task", "evaluation"),
    "seeds": (),
    "prompts and responses": ("run.steps", "pipeline.groups_per_step", "sampling"),
    "updates": ("pipeline.updates_per_step", "learner"),
    "token clip": ("objective.token_clip",),
}
"""what a reader wants to be the same -> the keys that decide it"""


@dataclass(frozen=True, slots=True)
class Run:
    """One arm with one seed."""

    arm: Arm
    seed: int
    folder: Path
    config: Config
    """resolved: of exactly this run"""

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.folder.name

    @property
    def overrides(self) -> tuple[str, ...]:
        """Overrides that make the study's configuration that of this run."""
        return (
            *self.arm.overrides,
            f"run.seed={self.seed}", f"run.name={self.name}", f"run.dir={self.folder.parent}", "run.resume=auto",
        )  # fmt: skip

    @property
    def is_finished(self) -> bool:
        """Tell whether the run need not be run again."""
        return is_finished(self.folder, self.config.run.steps)


def runs_of(path: Path, overrides: Sequence[str], arms: Sequence[Arm], seeds: int, out: Path) -> list[Run]:
    """List all runs, seed by seed, so that every arm has the first seed early. The first seed is the configuration's.

    Raises ConfigError for an arm that cannot be run as written, and for a run in ``out`` that was begun otherwise.
    """
    given = load_config(path, overrides)
    first = given.run.seed
    if given.objective.schedule and (schedules := [arm.divergence for arm in arms if arm.is_schedule]):
        raise ConfigError(f"objective.schedule is set and {schedules[0]} is one too; expected one of them")
    runs = []
    for seed in range(first, first + seeds):
        for arm in arms:
            run = Run(arm, seed, out / "runs" / f"{arm.name}-seed{seed}", Config())
            config = load_config(path, [*overrides, *run.overrides])
            if not config.evaluation.num_prompts:
                raise ConfigError("evaluation.num_prompts is 0; expected the number of held-out prompts to compare on")
            if not arm.is_schedule and any(change.divergence is not None for change in config.objective.schedule):
                raise ConfigError(
                    f"objective.schedule of {run.name} changes the divergence, after which an arm, its baseline and "
                    "its control are the same; expected changes of temperature only, or an arm such as "
                    "objective.divergence=forward_kl/reverse_kl@20"
                )
            runs.append(replace(run, config=config))
            _check_as_begun(runs[-1])
    return runs


def _check_as_begun(run: Run) -> None:
    path = run.folder / "config.yaml"
    if not path.exists():
        return
    begun, wanted = (flat(replace(config, run=only_length(config))) for config in (load_config(path), run.config))
    for key, value in wanted.items():
        if begun[key] != value:
            raise ConfigError(
                f"{run.folder} was begun with {key}={begun[key]}, now it is {value}; all runs of a comparison need the "
                "same: set it back, or take another --out"
            )


def only_length(config: Config) -> RunConfig:
    """Keep of the section run what decides the result: where a run is and how it is called does not."""
    return RunConfig(name="", steps=config.run.steps, seed=config.run.seed)


def flat(config: Config) -> dict[str, object]:
    """List every section.key of the first two levels, with its value."""
    sections = OmegaConf.to_container(OmegaConf.create(dump_config(config)))
    assert isinstance(sections, Mapping)
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def in_common(runs: Sequence[Run]) -> dict[str, str]:
    """List what was asked to be the same for all arms, and how that is."""
    seeds = sorted({run.seed for run in runs})
    first = runs[0].config
    tokens = [
        config.run.steps * config.pipeline.groups_per_step * config.sampling.group_size * config.sampling.max_tokens
        for config in (run.config for run in runs)
    ]
    clip = first.objective.token_clip
    said = {
        "model": first.model.path or "the tiny base policy",
        "task and held-out prompts": f"{first.task.name}, {first.evaluation.num_prompts} prompts x "
        f"{first.evaluation.samples_per_prompt} samples at temperature {first.evaluation.temperature:g}, by the seed",
        "seeds": ", ".join(str(seed) for seed in seeds),
        "prompts and responses": f"{first.run.steps} steps x {first.pipeline.groups_per_step} prompts x "
        f"{first.sampling.group_size} responses, at most {tokens[0]:,} response tokens a run",
        "updates": f"{first.pipeline.updates_per_step} a step, learning rate {first.learner.lr:g}",
        "token clip": f"{clip.kind} {clip.low:g}/{clip.high:g}",
    }
    sections = [flat(run.config) for run in runs]
    return {
        aspect: f"the same: {said[aspect]}"
        if all(_of(section, keys) == _of(sections[0], keys) for section in sections)
        else "an axis of the grid: differs between settings, the same for an arm and its baseline"
        for aspect, keys in ALIKE.items()
    }


def _of(section: Mapping[str, object], keys: Sequence[str]) -> dict[str, object]:
    return {name: value for name, value in section.items() if any(f"{name}.".startswith(f"{key}.") for key in keys)}
