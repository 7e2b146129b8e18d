"""Answers of known values, and texts that are almost those answers; with a judge that shares nothing with the verifier.

A gold is a structure: a number, or a list, pair, set or interval of numbers. It is written in one of its spellings, and
that text is broken: characters are dropped, doubled, exchanged; commas, spaces, signs, brackets and words come and go.
The judge knows a few plain spellings, and what they are worth. A text that it cannot read equals no gold.
"""

from __future__ import annotations

import ast
import operator
import re
from dataclasses import dataclass
from fractions import Fraction
from random import Random

NUMBER_KINDS = ("integer", "large", "decimal", "fraction", "mixed", "negative")
ITEM_KINDS = ("list", "pair", "set", "triple", "interval", "closed", "half")
WORDS = (
    " or 7", " and 3", "not ", "at least ", " or ", " and ", r"\text{ or } 5", r"\text{ 2}", " 4", ", 6", "; 8",
    " more", " minus 1", r"\%", "%", "!", "^2", "^{2}", "_2", "=", " = 3", "x", r"\sqrt", "e3", "|", "/2", "+1",
    "-1", r"\pm ", r"\times 2", "...", r"\ldots", " thousand", " times", ":", "'", "(1)", "[2]", r"\cup 3", r"\pi", "i",
    "<", ">", r"\ne ", " dozen", r"\frac", "{", "}", r"\cdot ", "0", "00", ".0", ".5", ",000", " 000",
    "x = ", "y=",
    r"\left(", "\\", "$", "**",
)  # fmt: skip


@dataclass(frozen=True)
class Gold:
    """A structure: its kind, and the values of its numbers in the order that they are written."""

    kind: str
    values: tuple[Fraction, ...]


def draw_gold(rng: Random) -> tuple[Gold, str]:
    """Draw a gold and one of its spellings that can be read in one way only."""
    kind = rng.choice(NUMBER_KINDS + ITEM_KINDS)
    if kind in NUMBER_KINDS:
        value = draw_number(rng, kind)
        return Gold("number", (value,)), spelled(rng, value)
    size = 3 if kind == "triple" else rng.randint(2, 4) if kind in ("list", "set") else 2
    values: list[Fraction] = []
    while len(values) < size:
        value = draw_number(rng, rng.choice(NUMBER_KINDS))
        if value not in values:
            values.append(value)
    if kind in ("interval", "closed", "half"):
        values.sort()
    around = {"list": ("", ""), "pair": ("(", ")"), "triple": ("(", ")"), "set": (r"\{", r"\}"), "interval": ("(", ")"),
              "closed": ("[", "]"), "half": ("[", ")")}[kind]  # fmt: skip
    text = ", ".join(spelled(rng, value, alone=False) for value in values)
    name = {"triple": "pair", "interval": "pair", "set": "list"}.get(kind, kind)
    return Gold(name, tuple(values)), f"{around[0]}{text}{around[1]}"


def draw_number(rng: Random, kind: str) -> Fraction:
    """Draw a number of a kind."""
    if kind == "integer":
        return Fraction(rng.randint(0, 400))
    if kind == "large":
        return Fraction(rng.randint(1000, 10 ** rng.randint(4, 9)))
    if kind == "negative":
        return -Fraction(rng.randint(1, 2000))
    if kind == "decimal":
        return Fraction(rng.randint(1, 10**5), 10 ** rng.randint(1, 4))
    below = rng.choice((2, 3, 4, 5, 6, 7, 8, 9, 12, 25, 100, 360))
    above = rng.randint(1, below - 1)
    return Fraction(above, below) + (rng.randint(1, 30) if kind == "mixed" else 0)


def spelled(rng: Random, value: Fraction, *, alone: bool = True) -> str:
    """Write a number in one of its spellings."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    if size.denominator == 1:
        groups = rng.random() < 0.5 and alone and re.search(",0", f"{size.numerator:,}")  # no list has an item 012
        return f"{sign}{size.numerator:,}" if groups else f"{sign}{size.numerator}"
    ways = [f"{size.numerator}/{size.denominator}", f"\\frac{{{size.numerator}}}{{{size.denominator}}}"]
    if size.denominator in (2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 1000, 10000):
        ways.append(f"{float(size):.6f}".rstrip("0"))
    if size > 1:
        whole, rest = divmod(size.numerator, size.denominator)
        ways.append(f"{whole}\\frac{{{rest}}}{{{size.denominator}}}")
    return sign + rng.choice(ways)


def broken(rng: Random, text: str) -> str:
    """Break a text at one to three places."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        text = _once(rng, text)
    return text


def _once(rng: Random, text: str) -> str:
    at = rng.randint(0, len(text))
    here = text[at : at + 1]
    way = rng.randint(0, 13)
    if way == 0:
        return text[:at] + text[at + 1 :]
    if way == 1:
        return text[:at] + here + text[at:]
    if way == 2:
        return text[:at] + text[at + 1 : at + 2] + here + text[at + 2 :]
    if way == 3:
        places = [place for place, character in enumerate(text) if character.isdigit()]
        if not places:
            return text + "1"
        place = rng.choice(places)
        return text[:place] + rng.choice("0123456789") + text[place + 1 :]
    if way == 4:
        return text[:at] + rng.choice(" ,.-+;/") + text[at:]
    if way == 5:
        return text.replace(",", rng.choice(("", " ", ";", ".", ", ", " ,")), rng.choice((1, -1)))
    if way == 6:
        return text.replace(" ", "")
    if way == 7:
        return re.sub(r"[()\[\]]", lambda _: rng.choice("()[]"), text, count=rng.randint(1, 2))
    if way == 8:
        return text[1:] if text.startswith("-") else f"-{text}"
    if way == 9:
        return text[:at] + rng.choice(WORDS) + text[at:]
    if way == 10:
        return text + rng.choice(WORDS)
    if way == 11:
        return rng.choice(WORDS) + text
    if way == 12:
        return text[:at]
    return rng.choice((f"({text})", f"[{text}]", f"\\{{{text}\\}}", f"{text}, {text}", f"{text}{text}", text[::-1]))


_WORDS_AT_END = (
    r"(?<=[0-9}).%\] ;\\])"
    r"(?:[\s;\\]*(?!(?:or|and|not|than|times|more|minus|thousand|dozen|ldots|pi)\b|(?<=\\)pm\b)[a-z]{2,14})+$"
)
_GROUPED = (
    r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})*,0[0-9]{2}(?:,[0-9]{3})*(?![0-9])",
    lambda found: found[0].replace(",", ""),
)


def is_perhaps(gold: Gold, text: str) -> bool:
    """Tell whether the judge reads ``text`` as the gold: the same numbers in the same brackets."""
    bare = _bare(text.replace("\\left", "").replace("\\right", ""))
    if gold.kind == "number":
        set_of_one = re.fullmatch(r"\\\{(.*)\\\}", bare)
        parts = re.split(r",?\s*\bor\b", _bare(set_of_one[1]) if set_of_one else bare)
        return all(_item(_bare(part), gold.values[0]) is not None for part in parts)
    opening, closing, inside = _around(bare)
    inside = re.sub(*_GROUPED, inside)
    parts = [
        part for part in re.split(r"[,;]\s*(?:and|or)\b|[,;]|\bor\b|\band\b", re.sub(r"\\text\{(.*?)\}", r"\1", inside))
    ]
    values = [_item(_bare(part), wanted) for part, wanted in zip(parts, gold.values, strict=False)]
    if len(parts) != len(gold.values):
        return False
    if gold.kind == "list":
        left = list(gold.values)
        for part in parts:
            found = next((value for value in left if _item(_bare(part), value) == value), None)
            if found is None:
                return False
            left.remove(found)
        return (opening, closing) in (("", ""), (r"\{", r"\}"), ("{", "}"))
    brackets = {"pair": [("(", ")"), ("]", "[")], "closed": [("[", "]")], "half": [("[", ")"), ("[", "[")]}
    return tuple(values) == gold.values and (opening, closing) in brackets[gold.kind]


def _item(text: str, wanted: Fraction) -> Fraction | None:
    return wanted if wanted in (_number(text), *_shares(text)) else None


def _shares(text: str) -> tuple[Fraction, ...]:
    """Return what a percentage may mean: 50% is 50 and 0.5."""
    number = _number(text[:-1].rstrip("\\ ")) if text.endswith("%") else None
    return () if number is None else (number, number / 100)


def _bare(text: str) -> str:
    """Strip what does not matter around an answer: spaces, a stop, dollars, a name, a unit of a word."""
    previous = None
    while previous != text:
        previous = text
        text = text.strip().rstrip(".").lstrip(":").strip().removesuffix("**").removeprefix("**").strip()
        text = re.sub(r"^\$(.*)\$$", r"\1", text)
        text = re.sub(r"^\\?\$|\\?\$$", "", text)
        text = re.sub(r"^\\?(?!not\b)[a-zA-Z]{1,9}\s*=\s*|^\\[(\[;]|\\[)\]]$|\\(?:text|left)$", "", text)
        text = re.sub(r"(?:\\[,:;!]|\\\\|\\text\{\s*\}?)+$", "", text.replace("\\ ", " "))
        text = re.sub(_WORDS_AT_END, "", text)
    return text


def _around(text: str) -> tuple[str, str, str]:
    for opening in (r"\{", "(", "[", "]", "{"):
        if text.startswith(opening):
            for closing in (r"\}", ")", "]", "[", "}"):
                if text.endswith(closing) and len(text) > len(opening) + len(closing):
                    return opening, closing, text[len(opening) : -len(closing)]
    return "", "", text


_STEPS = (
    (r"\{\{([^{}]*)\}\}", r"{\1}"),
    (r"\\frac\{([0-9]+)\}([0-9])", r"\\frac{\1}{\2}"),
    (r"\A([0-9]+):([0-9]+)\Z", r"\1/\2"),
    (r"\\left|\\right", ""),
    (r"(?<![0-9.,])([0-9]{1,3})((?:\{,\}[0-9]{3})+)(?![0-9])", lambda found: found[0].replace("{,}", "")),
    (r"\A[+-]?\s*[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?\Z", lambda found: found[0].replace(",", "")),
    (
        r"\A[+-]?\s*[0-9]{1,3}(?:(?:\s|\\[ ,])+[0-9]{3})+(?:\.[0-9]+)?\Z",
        lambda found: re.sub(r"[^0-9.+-]", "", found[0]),
    ),
    _GROUPED,
    (r"\\sqrt\s*1(?![0-9])|\\sqrt\{1\}|(?<![0-9])1!", "1"),
    (r"(?<![0-9])2!", "2"),
    (r"\A\|([0-9]+)\|\Z", r"\1"),
    (r"\\pm\s*0+\s*\Z|\A0i\Z", "+0"),
    (r"\A\\sqrt(.*)\^2\Z", r"\1"),
    (r"\A([+-])\s*\\?\$", r"\1"),
    (r"\\frac([0-9])(?=\{)", r"\\frac{\1}"),
    (r"\^\{?([0-9])\}?", r"**\1"),
    (r"\\\{(.*)\\\}", r"(\1)"),
    (r"(?<![0-9^*])([0-9]+)\s*\\frac\s*\{\s*\+?([0-9.]+)\s*\}\s*\{\s*\+?([0-9.]+)\s*\}", r"(\1+(\2)/(\3))"),
    (r"([0-9]+) +([0-9]+)\s*/\s*([0-9]+)", r"(\1+(\2)/(\3))"),
    (r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\cdot|\\times", "*"),
    (r"\{", "("),
    (r"\}", ")"),
    (r"(?<=[0-9)\]])\s*(?=[(\[])", "*"),
    (r"(?<=.)\[+([^\[\]]+)\]+|\[([^\[\]]+)\](?=.)", r"(\1\2)"),
    (r"(?<![0-9.])0+(?=[0-9])", ""),
)
_OPERATORS = {ast.Pow: operator.pow, ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
              ast.Div: operator.truediv,               ast.UAdd: operator.pos, ast.USub: operator.neg}  # fmt: skip


def _number(text: str) -> Fraction | None:
    """Read a number, also as an easy calculation, by Python's own parser; None for every other text."""
    for pattern, spelling in _STEPS:
        text = re.sub(pattern, spelling, text)
    if not re.fullmatch(r"[0-9.+\-*/() ]+", text) or re.search(r"\*\*.*\*\*|[0-9]{2}\*\*[0-9]{2}", text):
        return None
    try:
        return _calculated(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ZeroDivisionError, KeyError, TypeError):
        return None


def _calculated(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value)) if isinstance(node.value, int) else Fraction(f"{node.value:.12g}")
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_calculated(node.operand))
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_calculated(node.left), _calculated(node.right))
    raise TypeError
