r"""The spellings of one text as tokens of one spelling: LaTeX, plain text and Unicode signs become the same.

A token is a string: a command (``\frac``), a number (``12``, ``1.5e3``), a letter, a word (``"cm``: letters after a
quotation mark), a comma with or without space (``, `` and ``,``), or one other character. White space is no token, so
two numbers that stand beside each other stay two. Time is linear in the length of the text.
"""

from __future__ import annotations

import re

MAX_TOKENS = 600

_COMMANDS = {
    "×": "times", "⋅": "cdot", "·": "cdot", "∙": "cdot", "∗": "cdot", "÷": "div", "π": "pi", "√": "sqrt", "∞": "infty",
    "≤": "le", "⩽": "le", "≥": "ge", "⩾": "ge", "≠": "ne", "±": "pm", "∓": "mp", "∪": "cup", "∩": "cap", "∈": "in",
    "∅": "emptyset", "…": "ldots", "→": "to", "≈": "approx", "∨": "lor", "∧": "land", "∠": "angle", "△": "triangle",
    "θ": "theta", "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "λ": "lambda", "μ": "mu", "σ": "sigma",
    "φ": "phi", "ω": "omega", "⟨": "langle", "⟩": "rangle",
}  # fmt: skip
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
_FRACTIONS = {"½": "12", "⅓": "13", "⅔": "23", "¼": "14", "¾": "34", "⅕": "15", "⅛": "18"}
_CHARACTERS = str.maketrans(
    {
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
        **{sign: f"\\{name} " for sign, name in _COMMANDS.items()},
        **{sign: f"\\frac{{{pair[0]}}}{{{pair[1]}}}" for sign, pair in _FRACTIONS.items()},
        **dict.fromkeys("\u2212\u2013\u2012\ufe63", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2009\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\ufeff\u2060", ""),
        **dict.fromkeys("°º˚", "^\\circ "),
        "。": ".", "、": ",", "；": ";", "【": "(", "】": ")", "’": "'", "′": "'", "“": '"', "”": '"', "￥": "¥",
        "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}", "\0": " ",
    }
)  # fmt: skip
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")

_COLOR = re.compile(r"\\(?:text)?color\s*\{[^{}]{1,40}\}")
_INFIX = {"\\over": "\\frac", "\\choose": "\\binom"}

_TOKEN = re.compile(
    r"""(?P<joint>\{,\s?\}|,\s?\\!\s?|\\,(?=[0-9]{3}(?![0-9])))
      | (?P<spaced>\s+,)
      | (?P<space>(?:\s|~|\\[,;:!\s]|\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?|displaystyle|textstyle
            |limits|quad|qquad|enspace|thinspace|hfill|phantom)(?![a-zA-Z])\.?)+)
      | (?P<math>\$\$?|\\[()\[\]])
      | (?P<number>(?:1|[0-9]*\.[0-9]+)[eE][+-][0-9]{1,5}(?![0-9.]) | [0-9]+(?:\.[0-9]+)?[eE][0-9]{1,5}(?![0-9.])
            | [0-9]+\.[0-9]+ | [0-9]+ | \.[0-9]+)
      | (?P<command>\\[a-zA-Z]+)
      | (?P<escaped>\\.)
      | (?P<letters>[a-zA-Z]+)
      | (?P<other>\*\*|<=|>=|!=|.)""",
    re.VERBOSE | re.DOTALL,
)
_TEXT_FONTS = frozenset(
    ["text", "textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "mbox", "mathrm", "operatorname", "bold",
     "bf", "rm", "it", "em", "emph", "underline", "boldsymbol", "mathbf", "mathit", "mathsf", "cal", "tilde"]
)  # fmt: skip
_WORDS_WITHIN = frozenset(
    ["text", "textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "mbox", "mathrm", "operatorname", "emph"]
)
_RENAMED = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "geq": "ge",
    "leqslant": "le", "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">", "times": "*", "cdot": "*", "ast": "*",
    "div": "/", "varnothing": "emptyset", "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "vee": "lor",
    "wedge": "land", "lvert": "|", "rvert": "|", "vert": "|", "mid": "mid", "degree": "degree", "degrees": "degree",
    "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "colon": ":", "ge": "ge", "rightarrow": "to", "lnot": "neg",
    "doteq": "approx", "simeq": "approx", "wp": "wp", "oo": "infty", "varphi": "phi", "varepsilon": "epsilon",
    "lparen": "(", "rparen": ")", "bmod": "bmod", "pounds": "£", "euro": "€", "percent": "%",
}  # fmt: skip
_OTHERS = {"<=": "\\le", ">=": "\\ge", "!=": "\\ne", "•": "*"}
_ESCAPED = {"\\{": "\\{", "\\}": "\\}", "\\%": "%", "\\$": "\\$", "\\\\": "\\\\", "\\|": "|", "\\#": "#", "\\&": "&"}

GREEK = frozenset(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "rho",
        "sigma",
        "tau",
        "upsilon",
        "phi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Pi",
        "Sigma",
        "Upsilon",
        "Phi",
        "Psi",
        "Omega",
        "ell",
        "hbar",
        "wp",
    ]
)
ACCENTS = frozenset((
    "vec", "hat", "bar", "overline", "overrightarrow", "dot", "widehat", "mathbb", "mathcal", "mathscr", "mathfrak",
))  # fmt: skip
"""commands of one letter, and of what is put over one"""
FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "sinh",
        "cosh",
        "tanh",
        "arcsin",
        "arccos",
        "arctan",
        "asin",
        "acos",
        "atan",
        "ln",
        "log",
        "exp",
        "sqrt",
        "abs",
    ]
)
_PLAIN_COMMANDS = FUNCTIONS | {"pi", "infty", "infinity", "inf", "oo", "theta", "alpha", "beta", "lambda"}
SHORT_WORDS = frozenset(
    [
        "or",
        "and",
        "no",
        "is",
        "in",
        "if",
        "to",
        "of",
        "at",
        "by",
        "cm",
        "mm",
        "km",
        "kg",
        "mg",
        "ml",
        "dm",
        "ft",
        "yd",
        "mi",
        "lb",
        "oz",
        "hr",
        "hrs",
        "min",
        "sec",
        "mph",
        "kph",
        "rpm",
        "usd",
        "eur",
        "gbp",
        "rmb",
        "pm",
        "am",
        "sq",
        "the",
        "for",
        "not",
        "per",
        "yes",
        "all",
        "any",
        "odd",
        "men",
        "day",
        "one",
        "two",
        "six",
        "ten",
        "cat",
        "dog",
        "hen",
        "egg",
        "box",
        "cup",
        "dne",
        "pts",
    ]
)
"""words of two and three letters; other letters that stand together are a product"""


def tokens(text: str) -> tuple[str, ...] | None:
    """Return the tokens of ``text``; None when there are more than MAX_TOKENS."""
    text = _COLOR.sub("", _RAISED.sub(_raised, text.translate(_CHARACTERS)))
    found: list[str] = []
    fonts: list[str] = []
    """of every brace that is open: the font command before it, or "" """
    font = ""
    dollars = text.count("$") - text.count("\\$")
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0]
        if len(found) > MAX_TOKENS:
            return None
        if kind == "space":
            if found and found[-1] == "," and any(character.isspace() for character in token):
                found[-1] = ", "
            continue
        if kind == "command" and token[1:] in _TEXT_FONTS:
            font = token[1:]
            continue
        if token == "{" and kind == "other":
            fonts.append(font)
            if not font:
                found.append(token)
        elif token == "}" and kind == "other":
            if not fonts or not fonts.pop():
                found.append(token)
        elif kind == "letters":
            in_text = any(name in _WORDS_WITHIN for name in (*fonts, font))
            found.extend(
                _letters(
                    token, in_text, after_a_number=bool(found) and found[-1] != "." and found[-1][0] in "0123456789.})"
                )
            )
        elif kind == "math":
            if token == "$" and dollars % 2:
                found.append("\\$")
        else:
            found.append(_renamed(kind, token))
        font = ""
    return tuple(_joined(_prefixed(found)))


def _prefixed(found: list[str]) -> list[str]:
    r"""Write ``{a \over b}`` and ``{a \choose b}`` as ``\frac{a}{b}`` and ``\binom{a}{b}``."""
    while (at := next((at for at, token in enumerate(found) if token in _INFIX), -1)) >= 0:
        start, end = _group_around(found, at)
        above, below = found[start + 1 : at], found[at + 1 : end]
        in_braces = start >= 0 and end < len(found)
        if not in_braces and (start >= 0 or end < len(found)):
            return found  # braces that are not closed
        before, after = (found[:start], found[end + 1 :]) if in_braces else ([], [])
        found = [*before, _INFIX[found[at]], "{", *above, "}", "{", *below, "}", *after]
    return found


def _group_around(found: list[str], at: int) -> tuple[int, int]:
    """Return where the braces around a token are; -1 and the length where there are none."""
    start, depth = at - 1, 0
    while start >= 0 and (depth or found[start] != "{"):
        depth += (found[start] == "}") - (found[start] == "{")
        start -= 1
    end, depth = at + 1, 0
    while end < len(found) and (depth or found[end] != "}"):
        depth += (found[end] == "{") - (found[end] == "}")
        end += 1
    return start, end


def _raised(match: re.Match[str]) -> str:
    return f"^{{{''.join(_SUPERSCRIPTS[sign] for sign in match[0])}}}"


def _renamed(kind: str | None, token: str) -> str:
    if kind in ("joint", "spaced"):
        return "{,}" if kind == "joint" else ", "
    if kind == "escaped":
        return _ESCAPED.get(token, token)
    if kind == "command":
        name = _RENAMED.get(token[1:], token[1:])
        return f"\\{name}" if name.isalpha() and len(name) > 1 else name
    return _OTHERS.get(token, token)


def _letters(run: str, in_text: bool, after_a_number: bool) -> list[str]:
    """Return one word, one command, or the letters of a product."""
    lower = run.lower()
    if len(run) == 1:
        return [f'"{run}'] if in_text and after_a_number and run in "msghlLNJWV" else [run]
    if run in _PLAIN_COMMANDS:
        return ["\\infty" if run in ("infinity", "inf", "oo") else f"\\{run}"]
    if in_text or len(run) > 3 or (lower in SHORT_WORDS and (run == lower or run == run.upper() or run.istitle())):
        return [f'"{run}']
    return list(run)


def _joined(found: list[str]) -> list[str]:
    """Join numbers whose groups of three digits are marked as such: ``1{,}000`` and, as no list has it, ``1,000``."""
    joined: list[str] = []
    at = 0
    while at < len(found):
        token = found[at]
        end = at + 1
        if token.isdigit() and len(token) <= 3:
            while end + 1 < len(found) and found[end] in ("{,}", ",") and _is_group(found[end + 1]):
                end += 2
        groups, marks = found[at:end:2], found[at + 1 : end : 2]
        cannot_be_a_list = "{,}" in marks or (token[0] != "0" and any(group[0] == "0" for group in groups[1:]))
        whole = marks and cannot_be_a_list and (end >= len(found) or found[end] != "," or end + 1 >= len(found))
        if whole and all("." not in group for group in groups[:-1]):
            joined.append("".join(groups))
            at = end
        else:
            joined.append(token)
            at += 1
    return joined


def _is_group(token: str) -> bool:
    return len(token.partition(".")[0]) == 3 and token[0].isdigit() and token.replace(".", "", 1).isdigit()
