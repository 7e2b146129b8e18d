"""Schemas of tools are those of transformers, and arguments are held against them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, TypedDict

import pytest
from transformers.utils import get_json_schema

from lpo_ray.agents.tools import ToolEnvironment
from lpo_ray.agents.tools.builtin import calculator
from lpo_ray.agents.tools.schemas import schema_of, trouble_with, typed


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


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0
    colour: Colour = Colour.RED


class Option(TypedDict, total=False):
    size: int


Kilos = NewType("Kilos", int)


def draw(
    points: list[Point], sizes: tuple[int, ...], kinds: set[Colour], by_name: dict[str, Point] | None = None,
    weight: Kilos | str = "none", option: Option | None = None,
    pair: Annotated[tuple[Colour, int], "both"] | None = None,
) -> str:  # fmt: skip
    return ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"points": [{"x": 1.0}], "sizes": [1, 2.0, 3], "kinds": ["red", "red"]},
         {"points": [Point(1)], "sizes": (1, 2, 3), "kinds": {Colour.RED}}),
        ({"points": [{"x": 1, "y": 2, "colour": "blue"}], "sizes": [], "kinds": [], "by_name": {"a": {"x": 3}}},
         {"points": [Point(1, 2, Colour.BLUE)], "sizes": (), "kinds": set(), "by_name": {"a": Point(3)}}),
        ({"points": [], "sizes": [], "kinds": [], "by_name": None, "weight": 3.0, "option": {"size": 2.0},
          "pair": ["blue", 5.0]},
         {"points": [], "sizes": (), "kinds": set(), "by_name": None, "weight": 3, "option": {"size": 2},
          "pair": (Colour.BLUE, 5)}),
    ],
)  # fmt: skip
def test_a_function_gets_values_of_the_types_that_it_asks_for(arguments: dict, expected: dict) -> None:
    assert trouble_with(arguments, schema_of(draw)) is None
    found = typed(arguments, draw)
    assert found == expected
    assert repr(found) == repr(expected)  # 3 is no 3.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"points": [{"y": 1}]}, {"points": [{"x": 1, "z": 1}]}, {"points": [5]}, {"sizes": ["a"]}, {"kinds": ["green"]},
        {"by_name": {"a": {}}}, {"weight": 2.5}, {"option": {"size": "a"}}, {"pair": ["red"]}, {"points": None},
    ],
)  # fmt: skip
def test_parts_of_arguments_are_held_against_the_schema(arguments: dict) -> None:
    whole = {"points": [], "sizes": [], "kinds": [], **arguments}
    assert f"argument {next(iter(arguments))!r} is" in str(trouble_with(whole, schema_of(draw)))


def yielding() -> Iterator[int]:
    yield 1


async def yielding_later() -> AsyncIterator[int]:
    yield 1


def of_a_path(path: Path) -> str:
    return ""


def of_a_list_of_dates(days: list[datetime]) -> str:
    return ""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (eval("lambda x, /: x"), "takes 'x' by position only"), (yielding, "tool yielding yields; expected"),
        (yielding_later, "yields; expected a function that returns"),
        (of_a_path, "tool of_a_path takes 'path', of which no schema can be made: it is a Path; expected"),
        (of_a_list_of_dates, "it is a datetime; expected"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_call_is_refused(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schema_of(function)


def test_tools_have_names_of_their_own() -> None:
    environment = ToolEnvironment()
    for tools in ([search, calculator, search], [calculator, eval("lambda x: x")]):
        environment.tools = tools
        with pytest.raises(ValueError, match=r"tools have the names .*; expected one of its own for each"):
            environment.schemas()


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
