"""YAML file, then ``key=value`` overrides, then one validation of the whole: all before anything starts.

A later layer's value of a key takes the place of an earlier one's, a mapping's too: `learner.deepspeed={}` clears it,
while `learner.deepspeed.x=1` changes one entry. Text stays as it was written; see ``scalars.py``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args, get_origin

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lpo_ray.common.redaction import secret_in
from lpo_ray.config.scalars import Scalar, Tree, as_tree, plain_value, read_tree
from lpo_ray.config.schema import Config
from lpo_ray.config.spellings import use_one_spelling
from lpo_ray.config.typed import hints_of, is_section, takes_text, typed
from lpo_ray.config.validate import validate
from lpo_ray.errors import ConfigError

Layer = tuple[str, Mapping[str, object]]
"""sections of a configuration, and what messages call them"""
QUOTED = re.compile(r"'(?:[^']|'')*'|" + r'"(?:[^"\\]|\\.)*"', re.DOTALL)
"""text in YAML's quotes"""


class _Pending(NamedTuple):
    """Value that refers to others or to the environment."""

    tree: Tree
    hint: object
    source: str


RENAMED = {
    "rollout.deadline_seconds": "rollout.silence_seconds",
    "learner.deadline_seconds": "learner.silence_seconds",
    "pipeline.lease_seconds": None,
    "learner.zero": "learner.deepspeed.zero_optimization",
}
"""key of an earlier version -> its name now; None: it has no meaning any more"""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read ``path``, apply ``overrides`` ("section.key=value"), validate. Raises ConfigError naming key and value."""
    return config_of([read_layer(path)], overrides)


def read_layer(path: Path) -> Layer:
    """Read the sections that a file has. ConfigError when it is no YAML file of sections."""
    if not path.is_file():
        known = sorted(str(p) for p in Path("configs").glob("*.yaml"))
        hint = f"; in ./configs there are {', '.join(known)}" if known else ""
        raise ConfigError(f"config file {str(path)!r} does not exist; expected a YAML file{hint}")
    try:
        tree = read_tree(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not valid YAML: {error}") from error
    if isinstance(tree, Scalar) and tree.is_null:
        return str(path), {}
    if not isinstance(tree, dict):
        what = "a list" if isinstance(tree, list) else repr(str(tree))
        raise ConfigError(f"config file {path} holds {what}; expected sections such as 'run:' and 'model:'")
    return str(path), tree


def config_of(layers: Sequence[Layer], overrides: Sequence[str] = ()) -> Config:
    """Merge each layer over those before it, then ``overrides``, then one validation. Raises ConfigError as
    load_config.
    """
    values: dict[str, Any] = {}
    for source, sections in layers:
        _merge(values, in_new_names(cast("dict[str, Tree]", as_tree(sections))), Config, "", source)
    for override in overrides:
        _override(values, override)
    source = layers[0][0]
    missing: list[str] = []
    config = cast("Config", _made(Config, _resolved(values), "", missing))
    if missing:
        missing.sort()
        raise ConfigError(f"{source} does not set {', '.join(missing)}; add it to the file or pass {missing[0]}=...")
    use_one_spelling(config)
    validate(config)
    _refuse_secrets("", dataclasses.asdict(config), source)
    return config


def in_new_names(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Give keys of an earlier version their names of now, so that its runs can be resumed. Where the new name is there,
    too, it prevails.
    """
    named = {section: dict(keys) if isinstance(keys, Mapping) else keys for section, keys in sections.items()}
    for old, new in RENAMED.items():
        section, _, name = old.partition(".")
        if isinstance(keys := named.get(section), dict) and name in keys:
            value = keys.pop(name)
            if new is not None and value != {}:
                *path, last = new.split(".")[1:]
                for part in path:
                    keys[part] = keys = dict(below) if isinstance(below := keys.get(part), Mapping) else {}
                keys.setdefault(last, value)
    return named


def dump_config(config: Config) -> str:
    """Write the resolved configuration as YAML; ``load_config`` of it gives the same run."""
    return yaml.dump(_plain(dataclasses.asdict(config)), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text that YAML, or ``scalars.py``, would take for something else."""


def _represented(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_text = isinstance(plain_value(Scalar(text, plain=True)), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text else "'")


_Dumper.add_representer(str, _represented)


def _plain(value: Any) -> Any:  # noqa: ANN401 - what YAML has
    """Turn values of the schema into YAML's, so that no text in them is taken for an interpolation."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _merge(values: dict[str, Any], update: Mapping[str, Tree], section: type, prefix: str, source: str) -> None:
    """Put the keys of ``update`` into the ``values`` of ``section``: sections key by key, keys as a whole."""
    for name, tree in update.items():
        key = f"{prefix}{name}"
        hint = _known(section, name, prefix, source)
        if not is_section(hint):
            values[name] = _value(tree, hint, key, source)
            continue
        keys = {} if isinstance(tree, Scalar) and tree.is_null else tree  # a section's name with nothing below it
        if not isinstance(keys, dict):
            raise ConfigError(f"{source}: {key} is {plain_value(tree)!r}; expected keys of {', '.join(hints_of(hint))}")
        _merge(values.setdefault(name, {}), keys, hint, f"{key}.", source)


def _override(values: dict[str, Any], override: str) -> None:
    """Apply "section.key=value". Text is taken as it stands after the sign, all else as YAML."""
    key, equals, text = override.partition("=")
    now: str | None = key
    for old, new in RENAMED.items():
        if equals and f"{key}.".startswith(f"{old}."):
            now = None if new is None else new + key.removeprefix(old)
    if now is None:
        return None
    names, source = now.split("."), f"override {override!r}"
    if not equals or len(names) < 2 or not all(names):
        raise ConfigError(f"{source} was not understood; expected section.key=value, as in run.steps=5")
    hint: Any = Config
    for place, name in enumerate(names):
        if not is_section(hint):
            return _change(values, names, place, hint, text, source)
        hint = _known(hint, name, "".join(f"{section}." for section in names[:place]), source)
    tree = _parsed(text, hint, source)
    for name in reversed(names):
        tree = {name: tree}
    return _merge(values, cast("dict[str, Tree]", tree), Config, "", source)


def _change(values: dict[str, Any], names: list[str], depth: int, hint: Any, text: str, source: str) -> None:  # noqa: ANN401 - a type
    """Set one entry of the mapping that the first ``depth`` of ``names`` name."""
    key = ".".join(names[:depth])
    if get_origin(hint) is not dict:
        raise ConfigError(f"{source}: unknown key {'.'.join(names)!r}; {key} is set as a whole")
    *sections, last = names[:depth]
    for section in sections:
        values = values.setdefault(section, {})
    kept = values.get(last, {})
    kept = kept.tree if isinstance(kept, _Pending) else as_tree(kept)
    of_entry = get_args(hint)[1]
    holder = tree = cast("dict[str, Tree]", dict(cast("dict[str, Tree]", kept)))
    *path, entry = names[depth:]
    for name in path:
        below = holder.get(name)
        holder[name] = below = dict(below) if isinstance(below, dict) else {}
        holder = below
    holder[entry] = _parsed(text, of_entry, source)
    values[last] = _value(tree, hint, key, source)


def _parsed(text: str, hint: Any, source: str) -> Tree:  # noqa: ANN401 - a type
    """Parse what stands after the sign of an override."""
    is_quoted = QUOTED.fullmatch(text.strip())
    if takes_text(hint) and not is_quoted:
        return Scalar(text, plain=True)
    try:
        return read_tree(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML after '=': {' '.join(str(error).split())}") from error


def _value(tree: Tree, hint: Any, key: str, source: str) -> object:  # noqa: ANN401 - a type
    """Turn ``tree`` into the key's value; what refers to others waits for them."""
    if "${" in str(tree):
        return _Pending(tree, hint, source)
    if isinstance(tree, Scalar) and tree.plain and tree == MISSING:
        return MISSING
    try:
        return typed(tree, hint, key)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _resolved(values: dict[str, Any]) -> dict[str, Any]:
    """Put values in the place of interpolations such as ${oc.env:HOME} and ${run.name}. Raises ConfigError."""

    def resolve(holder: dict[str, Any], node: Any, prefix: str) -> dict[str, Any]:  # noqa: ANN401 - OmegaConf's
        done = {}
        for name, value in holder.items():
            if isinstance(value, dict) and is_section(_hint_at(prefix + name)):
                done[name] = resolve(value, node[name], f"{prefix}{name}.")
            elif isinstance(value, _Pending):
                done[name] = _followed(value, node, name, prefix + name)
            else:
                done[name] = value
        return done

    try:
        root = OmegaConf.create(_unresolved(values))
    except OmegaConfBaseException as error:  # what is no interpolation although it begins as one
        raise _not_followed(str(error.full_key), "text", error) from error
    return resolve(values, root, "")


def _followed(pending: _Pending, node: Any, name: str, key: str) -> object:  # noqa: ANN401 - OmegaConf's
    """Resolve the interpolations of one key, ``name`` of ``node``."""
    try:
        found = node[name]
        if OmegaConf.is_config(found):
            found = OmegaConf.to_container(found, resolve=True)
    except OmegaConfBaseException as error:
        shown = repr(plain_value(pending.tree))
        raise _not_followed(f"{pending.source}: {key}", shown, error) from error
    try:
        return typed(as_tree(found, plain=True), pending.hint, key)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{pending.source}: {error}") from error


def _not_followed(key: str, shown: str, error: OmegaConfBaseException) -> ConfigError:
    return ConfigError(
        f"{key} is {shown}: {str(error).splitlines()[0]}; expected a key as in ${{run.name}}, a variable that is set "
        "as in ${oc.env:HOME}, or \\${ for the characters themselves"
    )


def _unresolved(value: Any) -> Any:  # noqa: ANN401 - what OmegaConf has
    """Turn values into what OmegaConf resolves."""
    if isinstance(value, _Pending):
        return plain_value(value.tree)
    if isinstance(value, dict):
        return {name: _unresolved(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_unresolved(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _hint_at(key: str) -> Any:  # noqa: ANN401 - a type
    hint: Any = Config
    for name in key.split("."):
        hint = hints_of(hint)[name]
    return hint


def _made(section: Any, values: dict[str, Any], prefix: str, missing: list[str]) -> object:  # noqa: ANN401 - a class
    """Make a section of ``values`` and defaults, and add to ``missing`` the keys that have neither."""
    hints = hints_of(section)
    made = section(**{
        name: _made(hints[name], value, f"{prefix}{name}.", missing) if is_section(hints[name]) else value
        for name, value in values.items()
    })  # fmt: skip
    for name, hint in hints.items():
        if name not in values and is_section(hint):
            _made(hint, {}, f"{prefix}{name}.", missing)
        elif not is_section(hint) and isinstance(found := getattr(made, name), str) and found == MISSING:
            missing.append(f"{prefix}{name}")
    return made


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


def _known(section: type, name: str, prefix: str, source: str) -> Any:  # noqa: ANN401 - a type
    """Return the type of a key. ConfigError when the section has none of this name."""
    hints = hints_of(section)
    if name in hints:
        return hints[name]
    close = difflib.get_close_matches(name, hints, n=1)
    hint = f"did you mean {prefix}{close[0]}?" if close else f"expected one of {', '.join(hints)}"
    raise ConfigError(f"{source}: unknown key {prefix + name!r}; {hint}")
