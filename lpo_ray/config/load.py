"""YAML file, then ``key=value`` overrides, then one validation of the whole: all before anything starts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from lpo_ray.common.redaction import secret_in
from lpo_ray.config.schema import Config
from lpo_ray.config.validate import validate
from lpo_ray.errors import ConfigError

Layer = tuple[str, Mapping[str, object]]
"""sections of a configuration, and what messages call them"""


RENAMED = {
    "rollout.deadline_seconds": "rollout.silence_seconds",
    "learner.deadline_seconds": "learner.silence_seconds",
    "pipeline.lease_seconds": None,
}
"""key of an earlier version -> its name now; None: it has no meaning any more"""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read ``path``, apply ``overrides`` ("section.key=value"), validate. Raises ConfigError naming key and value."""
    return config_of([read_layer(path)], overrides)


def read_layer(path: Path) -> Layer:
    """Read the sections that a file has. ConfigError when it is no YAML file of sections."""
    return str(path), cast("Mapping[str, object]", _read(path))


def config_of(layers: Sequence[Layer], overrides: Sequence[str] = ()) -> Config:
    """Merge each layer over those before it, then ``overrides``, then one validation. Raises ConfigError as
    load_config.
    """
    merged = OmegaConf.structured(Config)
    for source, sections in layers:
        merged = _merge(merged, OmegaConf.create(dict(sections)), source)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or "." not in key:
            raise ConfigError(
                f"override {override!r} was not understood; expected section.key=value, as in run.steps=5"
            )
        try:
            update = OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"override {override!r} is not valid YAML after '=': {error}") from error
        merged = _merge(merged, update, f"override {override!r}")
    source = layers[0][0]
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(f"{source} does not set {', '.join(missing)}; add it to the file or pass {missing[0]}=...")
    config = cast("Config", OmegaConf.to_object(merged))
    validate(config)
    _refuse_secrets("", OmegaConf.to_container(merged, resolve=True), source)
    return config


def in_new_names(sections: DictConfig) -> DictConfig:
    """Give keys of an earlier version their names of now, so that its runs can be resumed. Where the new name is there,
    too, it prevails.
    """
    for old, new in RENAMED.items():
        section, _, name = old.partition(".")
        found = sections.get(section)
        if isinstance(found, DictConfig) and name in found:
            value = found.pop(name)
            if new is not None and OmegaConf.select(sections, new) is None:
                OmegaConf.update(sections, new, value)
    return sections


def dump_config(config: Config) -> str:
    """Write the resolved configuration as YAML; ``load_config`` of it gives the same run."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _refuse_secrets(key: str, value: object, source: str) -> None:
    """Raise ConfigError for a secret in ``value``: a run's folder keeps the configuration, and is handed on."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_secrets(f"{key}.{name}" if key else str(name), item, source)
    elif isinstance(value, list):
        for item in value:
            _refuse_secrets(key, item, source)
    elif isinstance(value, str) and (variable := secret_in(value)):
        raise ConfigError(
            f"{source}: {key} holds the value of ${variable}, and config.yaml of the run's folder would keep it; "
            "expected no secret in a configuration: what needs one reads it from the environment"
        )


def _read(path: Path) -> DictConfig:
    if not path.is_file():
        known = sorted(str(p) for p in Path("configs").glob("*.yaml"))
        hint = f"; in ./configs there are {', '.join(known)}" if known else ""
        raise ConfigError(f"config file {str(path)!r} does not exist; expected a YAML file{hint}")
    try:
        loaded = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"config file {path} is not valid YAML: {error}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"config file {path} holds a list; expected sections such as 'run:' and 'model:'")
    return loaded


def _merge(base: DictConfig, update: DictConfig, source: str) -> DictConfig:
    try:
        return cast("DictConfig", OmegaConf.merge(base, in_new_names(update)))
    except ConfigKeyError as error:
        raise ConfigError(
            f"{source}: unknown key {error.full_key!r}{_did_you_mean(base, str(error.full_key))}"
        ) from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{source}: {error.full_key or 'value'}: {reason}") from error


def _did_you_mean(base: DictConfig, key: str) -> str:
    section, _, name = key.rpartition(".")
    node = OmegaConf.select(base, section) if section else base
    known = [str(k) for k in node] if isinstance(node, DictConfig) else []
    close = difflib.get_close_matches(name, known, n=1)
    prefix = f"{section}." if section else ""
    return f"; did you mean {prefix}{close[0]}?" if close else f"; expected one of {', '.join(known)}"
