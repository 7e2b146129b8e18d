"""Typed functions as tools: their JSON schema, from signature and docstring, arguments checked against it, and these
as values of their types.

The schema is that of ``transformers.utils.get_json_schema``, made without transformers: it takes long to import, and a
function without a docstring is a tool, too.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any

Schema = dict[str, Any]
_SIMPLE = {int: "integer", float: "number", str: "string", bool: "boolean"}
_LISTS = (list, set, frozenset, Sequence, Collection, Iterable)
_ARGUMENTS = re.compile(r"^\s*(?:Args|Arguments|Parameters):\s*$", re.MULTILINE)
_SECTION = re.compile(r"^\s*(?:Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$", re.MULTILINE)
_ARGUMENT = re.compile(r"^\s*(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_CHOICES = re.compile(r"\(choices:\s*(\[.*?\])\)\s*$")


def schema_of(function: Callable[..., Any]) -> Schema:
    """Describe a function as a tool. Raises ValueError for what a model cannot call."""
    name = getattr(function, "__name__", type(function).__name__)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError(f"tool {name} yields; expected a function that returns what the model is told")
    described, arguments = _documented(inspect.getdoc(function) or "")
    hints = _hints(function)
    properties: Schema = {}
    required: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ValueError(
                f"tool {name} takes {parameter.name!r} by position only; expected arguments that have names"
            )
        try:
            found = _of_type(hints.get(parameter.name, Any))
        except (TypeError, RecursionError) as error:
            raise ValueError(
                f"tool {name} takes {parameter.name!r}, of which no schema can be made: {error}"
            ) from error
        if parameter.name in arguments:
            found["description"] = arguments[parameter.name]
        properties[parameter.name] = found
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters: Schema = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    return {"type": "function", "function": {"name": name, "description": described, "parameters": parameters}}


def trouble_with(arguments: Mapping[str, Any], schema: Schema) -> str | None:
    """Say what is wrong with the arguments of a call; None: nothing."""
    parameters = schema["function"]["parameters"]
    properties = parameters["properties"]
    expected = ", ".join(properties) or "none"
    if unknown := sorted(set(arguments) - set(properties)):
        return f"unknown argument {unknown[0]!r}; expected {expected}"
    if missing := [name for name in parameters.get("required", ()) if name not in arguments]:
        return f"argument {missing[0]!r} is missing; expected {expected}"
    for name, value in arguments.items():
        if not _fits(value, properties[name]):
            return f"argument {name!r} is {_shown(value)}; expected {_wanted(properties[name])}"
    return None


def typed(arguments: Mapping[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Return arguments that ``trouble_with`` finds right as values of the types that the function asks for: JSON has no
    enumerations, dataclasses, sets and tuples, and writes 3.0 for 3.
    """
    hints = _hints(function)
    return {name: _made(value, hints.get(name, Any)) for name, value in arguments.items()}


def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception as error:
        raise ValueError(f"the types of tool {function} cannot be read: {error}") from error


def _of_type(hint: Any) -> Schema:  # noqa: ANN401 - any annotation
    """Describe a type. Raises TypeError for one that nothing in JSON stands for."""
    hint = _named(hint)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if origin is typing.Literal:
        return _of_choices(parts)
    if origin in (typing.Union, types.UnionType):
        return _of_union(parts)
    if origin is tuple and not (len(parts) == 2 and parts[1] is ...):
        return {"type": "array", "prefixItems": [_of_type(part) for part in parts]}
    if origin in (*_LISTS, tuple) or hint in (*_LISTS, tuple):
        return {"type": "array", **({"items": _of_type(parts[0])} if parts else {})}
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return {"type": "object", **({"additionalProperties": _of_type(parts[1])} if parts else {})}
    if inspect.isclass(hint) and hint not in (Any, object, types.NoneType):
        return _of_class(hint)
    return {}


def _of_choices(values: Sequence[Any]) -> Schema:
    kinds = {_SIMPLE.get(type(value), "string") for value in values}
    return {"type": kinds.pop() if len(kinds) == 1 else sorted(kinds), "enum": list(values)}


def _of_class(hint: type) -> Schema:
    if issubclass(hint, Enum):
        return _of_choices([member.value for member in hint])
    if is_dataclass(hint):
        required = [f.name for f in fields(hint) if f.init and f.default is MISSING and f.default_factory is MISSING]
        names = {f.name for f in fields(hint) if f.init}
    elif typing.is_typeddict(hint):
        required, names = sorted(hint.__required_keys__), set(hint.__annotations__)
    else:
        raise TypeError(
            f"it is a {hint.__qualname__}; expected numbers, texts, Literal, an Enum, a dataclass or TypedDict, or "
            "lists and dicts of them"
        )
    found = {name: _of_type(part) for name, part in typing.get_type_hints(hint).items() if name in names}
    return {"type": "object", "properties": found, "required": required}


def _named(hint: Any) -> Any:  # noqa: ANN401 - any annotation
    """Return what Annotated, a NewType or an alias stands for."""
    while True:
        if typing.get_origin(hint) in (typing.Annotated, typing.Required, typing.NotRequired):
            hint = typing.get_args(hint)[0]
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        else:
            return hint


def _made(value: Any, hint: Any) -> Any:  # noqa: ANN401 - any JSON, any annotation
    """Return a value that fits a type as one of it."""
    hint = _named(hint)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        fitting = [part for part in parts if part is not types.NoneType and _fits(value, _of_type(part))]
        return _made(value, fitting[0]) if fitting else value
    if hint is int:
        return int(value)
    if isinstance(value, list):
        kind = origin or hint
        each = parts if kind is tuple and ... not in parts else [*parts[:1]] * len(value)
        made = [_made(*item) for item in zip(value, each, strict=True)] if each else value
        return kind(made) if kind in (set, frozenset, tuple) else made
    if isinstance(value, dict) and len(parts) == 2:
        return {key: _made(item, parts[1]) for key, item in value.items()}
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return hint(value)
    if isinstance(value, dict) and (is_dataclass(hint) or typing.is_typeddict(hint)):
        hints = typing.get_type_hints(hint)
        made = {key: _made(item, hints[key]) for key, item in value.items()}
        return hint(**made)
    return value


def _of_union(parts: Sequence[Any]) -> Schema:
    found = [_of_type(part) for part in parts if part is not types.NoneType]
    optional = {"nullable": True} if types.NoneType in parts else {}
    if len(found) == 1:
        return {**found[0], **optional}
    if all(set(part) == {"type"} and isinstance(part["type"], str) for part in found):
        return {"type": sorted(part["type"] for part in found), **optional}
    return {"anyOf": found, **optional}


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into what it says, and what it says of each argument (Google's style, or :param name:)."""
    start = _ARGUMENTS.search(text)
    first = _SECTION.search(text) or re.search(r"^\s*:(?:param|returns?|raises)", text, re.MULTILINE)
    described = " ".join((text[: first.start()] if first else text).split())
    found: dict[str, str] = {}
    if start is not None:
        rest = text[start.end() :]
        end = _SECTION.search(rest)
        name, width = "", None
        for line in (rest[: end.start()] if end else rest).splitlines():
            if not line.strip():
                continue
            indent = len(line) - len(line.lstrip())
            width = indent if width is None else width
            matched = _ARGUMENT.match(line)
            if matched is not None and indent == width:
                name, found[matched[1]] = matched[1], matched[2].strip()
            elif name:
                found[name] = f"{found[name]} {line.strip()}"
    for matched in re.finditer(r"^\s*:param (?:[\w\[\], |]+ )?(\w+):\s*(.*)$", text, re.MULTILINE):
        found[matched[1]] = matched[2].strip()
    return described, {name: _CHOICES.sub("", said).strip() for name, said in found.items()}


def _fits(value: object, schema: Schema) -> bool:
    """Tell whether a value, read from JSON, is of a schema that ``_of_type`` made."""
    if value is None and schema.get("nullable"):
        return True
    if "enum" in schema:
        return any(value == choice and type(value) is type(choice) for choice in schema["enum"])
    if "anyOf" in schema:
        return any(_fits(value, part) for part in schema["anyOf"])
    kinds = schema.get("type")
    if kinds is None:
        return True
    if isinstance(kinds, list):
        return any(_fits(value, {"type": kind}) for kind in kinds)
    if kinds == "array":
        return isinstance(value, list) and _items_fit(value, schema)
    if kinds == "object" and "properties" in schema:
        return isinstance(value, dict) and _properties_fit(value, schema)
    if kinds == "object":
        each = schema.get("additionalProperties", {})
        return isinstance(value, dict) and all(_fits(item, each) for item in value.values())
    if kinds in ("number", "integer"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return kinds == "number" or isinstance(value, int) or value.is_integer()
    return isinstance(value, str if kinds == "string" else bool)


def _properties_fit(value: dict[str, Any], schema: Schema) -> bool:
    properties = schema["properties"]
    if not set(schema["required"]) <= set(value) <= set(properties):
        return False
    return all(_fits(item, properties[name]) for name, item in value.items())


def _items_fit(value: list[Any], schema: Schema) -> bool:
    if "prefixItems" in schema:
        parts = schema["prefixItems"]
        return len(parts) == len(value) and all(map(_fits, value, parts))
    return all(_fits(item, schema.get("items", {})) for item in value)


def _wanted(schema: Schema) -> str:
    if "enum" in schema:
        return f"one of {', '.join(map(repr, schema['enum']))}"
    kinds = schema.get("type", "another value")
    return " or ".join(kinds) if isinstance(kinds, list) else str(kinds)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
