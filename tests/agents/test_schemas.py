"""Schemas of tools are those of transformers, and arguments are held against them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import pytest
from transformers.utils import get_json_schema

from lpo_ray.agents.builtin_tools import calculator
from lpo_ray.agents.schemas import schema_of, trouble_with


def search(query: str, limit: int = 5, exact: bool = False) -> list[str]:
    """Search the library.

    Args:
        query: words to look for,
            one or more
        limit: results at most
        exact: whether case counts

    Returns:
        titles
    """
    return []


def place(x: float, y: float, name: str | None = None, tags: list[str] | None = None) -> dict[str, int]:
    """Place something.

    Args:
        x: metres east
        y: metres north
        name: what it is
        tags: more of it
    """
    return {}


def choose(kind: Literal["a", "b"], sizes: dict[str, float], either: int | str, corner: tuple[int, str]) -> str:
    """Choose.

    Args:
        kind: which kind
        sizes: of each
        either: a number or a name
        corner: where
    """
    return ""


def bare(value, other=3):
    return value


def sphinx(first: int) -> int:
    """Take the first.

    :param first: the one
    :return: it
    """
    return first


@pytest.mark.parametrize("function", [search, place, choose, calculator])
def test_the_schema_is_that_of_transformers(function: Callable[..., Any]) -> None:
    found, expected = schema_of(function), get_json_schema(function)
    expected["function"].pop("return", None)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(expected))


def test_a_function_without_types_or_docstring_is_a_tool_too() -> None:
    function = schema_of(bare)["function"]
    assert function == {
        "name": "bare",
        "description": "",
        "parameters": {"type": "object", "properties": {"value": {}, "other": {}}, "required": ["value"]},
    }
    assert schema_of(sphinx)["function"]["parameters"]["properties"]["first"]["description"] == "the one"
    assert schema_of(sphinx)["function"]["description"] == "Take the first."


def test_what_a_model_cannot_call_is_refused() -> None:
    with pytest.raises(ValueError, match="takes 'x' by position only"):
        schema_of(eval("lambda x, /: x"))


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (search, {"query": "x"}, None),
        (search, {"query": "x", "limit": 3.0}, None),
        (search, {"query": "x", "limit": 3.5}, "argument 'limit' is 3.5; expected integer"),
        (search, {"query": "x", "limit": True}, "'limit' is True; expected integer"),
        (search, {"query": "x", "exact": 1}, "'exact' is 1; expected boolean"),
        (search, {"query": 5}, "'query' is 5; expected string"),
        (search, {"limit": 5}, "argument 'query' is missing; expected query, limit, exact"),
        (search, {"query": "x", "limits": 5}, "unknown argument 'limits'; expected query, limit, exact"),
        (place, {"x": 1, "y": 2.5, "name": None, "tags": ["a"]}, None),
        (place, {"x": 1, "y": 2.5, "tags": ["a", 1]}, "'tags' is ['a', 1]; expected array"),
        (place, {"x": float("nan"), "y": 1}, None),
        (choose, {"kind": "a", "sizes": {"a": 1}, "either": "x", "corner": [1, "a"]}, None),
        (choose, {"kind": "c", "sizes": {}, "either": 1, "corner": [1, "a"]}, "expected one of 'a', 'b'"),
        (choose, {"kind": "a", "sizes": {"a": "1"}, "either": 1, "corner": [1, "a"]}, "expected object"),
        (choose, {"kind": "a", "sizes": {}, "either": None, "corner": [1, "a"]}, "expected integer or string"),
        (choose, {"kind": "a", "sizes": {}, "either": 1, "corner": [1]}, "expected array"),
        (bare, {"value": {"any": [1]}}, None),
        (search, {"query": "x", "limit": float("inf")}, "expected integer"),
        (search, {"query": "x", "limit": 10**400}, None),
    ],
)
def test_arguments_are_held_against_the_schema(function: Callable, arguments: dict, expected: str | None) -> None:
    found = trouble_with(arguments, schema_of(function))
    assert found is None if expected is None else expected in str(found)
