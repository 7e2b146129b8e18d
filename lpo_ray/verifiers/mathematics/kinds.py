"""Kinds of answers: what a text of mathematics may be read as."""

from __future__ import annotations

from dataclasses import dataclass

from lpo_ray.verifiers.mathematics.expression import Expression
from lpo_ray.verifiers.mathematics.quantity import Quantity


@dataclass(frozen=True, slots=True)
class Words:
    """A text that is compared as such."""

    text: str


@dataclass(frozen=True, slots=True)
class Infinite:
    """Infinity, alone or at the end of an interval."""

    sign: int


@dataclass(frozen=True, slots=True)
class Items:
    """Several readings: ``list`` (in any order, a set too), ``tuple``, ``square``, ``matrix`` (of rows), ``ratio``."""

    kind: str
    items: tuple[Reading, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval, as brackets or inequalities say it; ``variable`` is "" where brackets do."""

    low: Reading
    high: Reading
    low_closed: bool
    high_closed: bool
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Union:
    """Intervals and points together, in any order."""

    parts: tuple[Reading, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """Name and what it is said to be: ``x = 5``, ``f(x) = 2x``."""

    name: str
    value: Reading


@dataclass(frozen=True, slots=True)
class Equation:
    """A difference, and its relation to 0: "=", ">" or ">="."""

    difference: Expression
    relation: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The letter of a choice with what it stands for, as in "(C) 42"."""

    letter: str
    value: Reading


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a base other than ten, which is not a number that another base gives."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Grouped:
    """Digits in groups of three: one number, or a list."""

    number: Quantity
    items: Items
    is_list: bool
    """whether the answer of a data set means the list: two round numbers in ascending order, such as 100,200"""


Reading = Words | Quantity | Infinite | Items | Interval | Union | Named | Equation | Choice | Based | Grouped
