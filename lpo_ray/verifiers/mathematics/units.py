"""Units and signs that stand after or before a number, and do not change it. Words that make it another number do."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

CURRENCY = frozenset(("\\$", "€", "£", "¥", "₹"))
SCALES = {
    "hundred": Fraction(100), "thousand": Fraction(1000), "million": Fraction(10**6), "billion": Fraction(10**9),
    "trillion": Fraction(10**12), "dozen": Fraction(12),
}  # fmt: skip
_UNITS: dict[str, tuple[str, ...]] = {
    "cm": ("cm", "centimeter", "centimetre"), "mm": ("mm", "millimeter", "millimetre"),
    "km": ("km", "kilometer", "kilometre"), "m": ("m", "meter", "metre"), "in": ("in", "inch"),
    "ft": ("ft", "foot", "feet"), "yd": ("yd", "yard"), "mi": ("mi", "mile"), "kg": ("kg", "kilogram"),
    "g": ("g", "gram"), "lb": ("lb", "pound"), "oz": ("oz", "ounce"), "s": ("s", "sec", "second"),
    "min": ("min", "minute"), "h": ("h", "hr", "hour"), "day": ("day",), "week": ("week",), "month": ("month",),
    "year": ("year", "yr"), "usd": ("dollar", "usd", "buck"), "cent": ("cent",), "euro": ("euro", "eur"),
    "am": ("am",), "pm": ("pm",), "mph": ("mph",), "kph": ("kph",), "l": ("liter", "litre"), "ml": ("ml",),
    "degree": ("degree", "deg"), "radian": ("radian", "rad"), "n": ("newton", "n"), "kn": ("kn",), "j": ("joule", "j"),
    "kj": ("kj",), "w": ("watt", "w"), "kw": ("kw",), "v": ("volt", "v"), "mv": ("mv",), "kv": ("kv",), "hz": ("hz",),
    "khz": ("khz",), "mhz": ("mhz",), "pa": ("pa",), "kpa": ("kpa",), "mpa": ("mpa",), "mg": ("mg",), "nm": ("nm",),
    "ms": ("ms", "millisecond"), "mol": ("mol", "mole"), "mmol": ("mmol",), "ev": ("ev",), "cal": ("cal", "calorie"),
    "kcal": ("kcal",),
}  # fmt: skip
_KNOWN = {spelling: unit for unit, spellings in _UNITS.items() for spelling in spellings}
_QUOTIENTS = {"mph": "h/mi", "kph": "h/km"}
NOT_UNITS = frozenset(
    ["or", "and", "not", "no", "than", "if", "else", "otherwise", "maybe", "perhaps", "possibly", "either", "neither",
     "nor", "at", "least", "most", "more", "less", "fewer", "minus", "plus", "times", "over", "squared", "cubed",
     "factorial", "mod", "modulo", "base", "half", "third", "quarter", "percent", "percentage", "hundredth",
     "thousandth", "tenth", "except", "without", "but", "unless", "between", "through", "until", "where", "when",
     "with", "is", "are", "equals", "equal", "to", "point", "negative", "below", "under", "above", "beyond", "nearly",
     "about", "almost", "up", "down", "off", "wrong", "false", "incorrect", "impossible", "undefined", "infinity",
     "infinite", "doubled", "tripled", "inverse", "root", "twice", "double", "triple", "remainder", "only", "both",
     "different", "same", "ldots", "cdots", "dots", "hundred", "thousand", "million", "billion", "trillion", "dozen"]
)  # fmt: skip
"""words that make another number, or none, of what stands beside them"""
_SIGNS_OF_UNITS = frozenset(("/", "*", "^", "(", ")", "{", "}", ".", "m", "s", "h"))
_NEVER_BEFORE_A_UNIT = frozenset(("+", "-", "*", "/", "^", "(", "[", "{", "_", "=", ",", ", ", "<", ">"))


def without_unit(found: Sequence[str]) -> tuple[Sequence[str], str]:
    """Return (tokens before the unit, the unit's name); the name is "" for a unit that is not known, and for none.

    A unit is one or more words at the end, with exponents and fractions of them: ``cm^2``, ``km/h``, ``square units``.
    Its name has those of its parts: "h/km" for ``km/h``, "cm" for ``square centimeters``.
    """
    bare = found[:-1] if found and found[-1] == "." else found
    if len(bare) > 3 and tuple(bare[-3:]) in (("a", ".", "m"), ("p", ".", "m")):
        return bare[:-3], f"{bare[-3]}m"
    start = next((at for at, token in enumerate(found) if token[:1] == '"'), len(found))
    words = [token[1:] for token in found[start:] if token[:1] == '"']
    if start and found[start - 1] == "(":  # 42 (units)
        start -= 1
    tail = found[start:]
    if not words or not start or len(tail) > 14 or found[start - 1] in _NEVER_BEFORE_A_UNIT:
        return found, ""
    if not all(token[:1] == '"' or token in _SIGNS_OF_UNITS or _is_exponent(tail, at) for at, token in enumerate(tail)):
        return found, ""
    if any(word.lower() in NOT_UNITS or not _may_be_unit(word) for word in words):
        return found, ""
    names = {_known(word) for word in words} - {""}
    return found[:start], "/".join(sorted({part for name in names for part in _QUOTIENTS.get(name, name).split("/")}))


def differ(one: str, other: str) -> bool:
    """Tell whether two names are of different units: not where one of them may have been left out, in whole or part."""
    left, right = ({*name.split("/")} - {""} for name in (one, other))
    return not (left <= right or right <= left)


def _is_exponent(tail: Sequence[str], at: int) -> bool:
    """Tell whether a digit stands in an exponent: ``cm^2``, ``s^{-1}``."""
    before = [token for token in tail[max(at - 3, 0) : at] if token not in ("{", "-")]
    return tail[at] in ("-", "1", "2", "3") and before[-1:] == ["^"]


def _may_be_unit(word: str) -> bool:
    """Tell whether a word may be a unit: names of days and people are none."""
    return bool(_known(word)) or not word.istitle() or len(word) < 3


def _known(word: str) -> str:
    lower = word.lower()
    stems = (lower, lower.removesuffix("s"), lower.removesuffix("es"))
    return next((_KNOWN[stem] for stem in stems if stem in _KNOWN), "")


def without_scale(found: Sequence[str]) -> tuple[Sequence[str], Fraction]:
    """Return (tokens before it, the number that ``thousand``, ``million`` or ``dozen`` at the end stands for), or 1."""
    scale = SCALES.get(found[-1][1:].lower()) if len(found) > 1 and found[-1][:1] == '"' else None
    return (found, Fraction(1)) if scale is None else (found[:-1], scale)
