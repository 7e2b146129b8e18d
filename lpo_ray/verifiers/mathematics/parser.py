r"""Tokens to the tree of an expression, by recursive descent.

Grammar: sum = [+-] product ([+-] product)*; product = factor ([*/] factor | factor)*; factor = atom [^ argument] [!].
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from lpo_ray.verifiers.mathematics.expression import Expression, Node
from lpo_ray.verifiers.mathematics.spelling import ACCENTS, FUNCTIONS, GREEK

MAX_DEPTH = 24
"""nesting of brackets, fractions, roots and exponents"""


MAX_LETTERS = 12
"""different letters of an expression"""


MAX_NUMBER = 4_000
"""characters of one number"""


_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}


_COMMAND_FUNCTIONS = frozenset(f"\\{name}" for name in FUNCTIONS if name != "sqrt")


_STARTS = frozenset(("(", "{", "[", "\\frac", "\\sqrt", "\\pi", "\\binom", "\\lfloor", "\\lceil", "\\mathbb"))


class NotAnExpression(ValueError):
    """Error of tokens that are no expression."""


def expression_of(found: Sequence[str]) -> Expression | None:
    """Parse tokens; None when they are no expression."""
    try:
        parser = _Parser(found)
        tree = parser.whole()
    except NotAnExpression:
        return None
    letters = tuple(sorted(parser.letters))
    return Expression(tree, letters, parser.is_complex) if len(letters) <= MAX_LETTERS else None


class _Parser:
    """Recursive descent over tokens, at most MAX_DEPTH deep."""

    def __init__(self, found: Sequence[str]) -> None:
        self._tokens, self._at, self._depth, self._bars = found, 0, 0, 0
        self.letters: set[str] = set()
        self.is_complex = False

    def whole(self) -> Node:
        node = self._sum()
        if self._at < len(self._tokens):
            raise NotAnExpression
        return node

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1] if self._at <= len(self._tokens) else ""

    def _take(self, token: str) -> bool:
        if self._peek() == token:
            self._at += 1
            return True
        return False

    def _sum(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotAnExpression
        terms = [(self._sign(), self._product())]
        while self._peek() in ("+", "-"):
            terms.append((-1 if self._next() == "-" else 1, self._product()))
        self._depth -= 1
        return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else ("sum", tuple(terms))

    def _sign(self) -> int:
        if self._take("-"):
            return -1
        self._take("+")
        return 1

    def _product(self) -> Node:
        factors = [(False, self._factor())]
        while True:
            token = self._peek()
            if token in ("*", "/"):
                self._at += 1
                negative = self._take("-")
                factors.append((token == "/", self._factor()))
                if negative:
                    factors.append((False, ("number", Fraction(-1))))
            elif self._begins_factor(token):
                factors.append((False, self._factor()))
            else:
                return factors[0][1] if len(factors) == 1 else ("product", tuple(factors))

    def _begins_factor(self, token: str) -> bool:
        """Tell whether a factor begins here without a sign of multiplication before it: never a number."""
        if not token or token[0] == '"':
            return False
        if token == "|":
            return self._bars == 0
        return token in _STARTS or token in _COMMAND_FUNCTIONS or self._is_letter(token)

    @staticmethod
    def _is_letter(token: str) -> bool:
        return (len(token) == 1 and token.isascii() and token.isalpha()) or (
            token[:1] == "\\" and (token[1:] in GREEK or token[1:] in ACCENTS)
        )

    def _factor(self) -> Node:
        node = self._atom()
        while True:
            if self._take("^"):
                if self._peek() == "\\circ" or tuple(self._tokens[self._at : self._at + 3]) == ("{", "\\circ", "}"):
                    self._at += 1 if self._peek() == "\\circ" else 3
                    node = ("degrees", node)
                    continue
                node = ("power", node, self._exponent())
                if self._peek() == "^":  # a^b^c is no LaTeX
                    raise NotAnExpression
            elif self._take("**"):
                negative = self._take("-")
                exponent = self._atom()
                if self._peek() in ("**", "^"):
                    raise NotAnExpression
                node = ("power", node, ("sum", ((-1, exponent),)) if negative else exponent)
            elif self._take("!"):
                if self._peek() == "!":
                    raise NotAnExpression
                node = ("factorial", node)
            elif self._take("\\degree"):
                node = ("degrees", node)
            else:
                return node

    def _exponent(self) -> Node:
        if self._take("-"):
            return ("sum", ((-1, self._argument()),))
        self._take("+")
        return self._argument()

    def _argument(self) -> Node:
        r"""Read what follows a command: a group, or one token, of a number one digit, as in ``\frac12``."""
        token = self._peek()
        if not token[:1].isdigit():
            return self._atom()
        self._tokens = (*self._tokens[: self._at], *token[:1], *([token[1:]] if token[1:] else []),
                        *self._tokens[self._at + 1 :])  # fmt: skip
        return ("number", Fraction(self._next()))

    def _atom(self) -> Node:
        token = self._next()
        if token[:1] in "0123456789." and token not in ("", "."):
            return self._number(token)
        if token in ("(", "{", "["):
            return self._group(_CLOSING[token])
        if token == "|":
            self._bars += 1
            node = self._sum()
            self._bars -= 1
            if not self._take("|"):
                raise NotAnExpression
            return ("abs", node)
        if token == "\\frac":
            above = self._argument()
            return ("product", ((False, above), (True, self._argument())))
        if token == "\\sqrt":
            return self._root()
        if token == "\\binom":
            above = self._argument()
            return ("binomial", above, self._argument())
        if token in ("\\lfloor", "\\lceil"):
            return ("floor" if token == "\\lfloor" else "ceil", self._group(token.replace("\\l", "\\r")))
        if token in _COMMAND_FUNCTIONS:
            return self._function(token[1:])
        if token in ("\\max", "\\min"):
            return self._extreme(token[1:])
        if token == "\\pi":
            return ("constant", "pi")
        if self._is_letter(token):
            return self._letter(token)
        raise NotAnExpression

    def _group(self, closing: str) -> Node:
        bars, self._bars = self._bars, 0
        node = self._sum()
        self._bars = bars
        if not self._take(closing):
            raise NotAnExpression
        return node

    def _number(self, token: str) -> Node:
        value = number_of(token)
        if self._peek() == "." or ("." in token and self._peek() in ("\\overline", "\\bar", "\\dot")):
            return ("number", value + self._repeating(token))
        if not token.isdigit():
            if self._peek() == "(":  # 0.1(6) is a product, and elsewhere a repeating decimal
                raise NotAnExpression
            return ("number", value)
        plain = self._tokens[self._at : self._at + 3]
        if len(plain) == 3 and plain[0].isdigit() and plain[1] == "/" and plain[2].isdigit():  # 3 1/2
            self._at += 3
            return ("number", value + _proper(number_of(plain[0]), number_of(plain[2])))
        if self._peek() != "\\frac":
            return ("number", value)
        at = self._at
        (_, above), (_, below) = self._atom()[1]
        if above[0] == below[0] == "number":
            return ("number", value + _proper(above[1], below[1]))
        self._at = at  # 2\frac{\sqrt{3}}{2} is a product
        return ("number", value)

    def _repeating(self, token: str) -> Fraction:
        r"""Read the repeating part of a decimal: ``\overline{3}``, ``\dot{1}\dot{3}``, or ``(3)`` after the point."""
        before_point = self._take(".")
        mark = self._next()
        if mark == "(" and before_point:
            digits = self._next()
            if not self._take(")"):
                raise NotAnExpression
        elif mark in ("\\overline", "\\bar"):
            digits = self._raw_group()
        elif mark == "\\dot":
            digits = self._raw_group()
            between = self._next() if self._peek().isdigit() else ""
            if self._take("\\dot"):
                digits += between + self._raw_group()
            elif between:
                raise NotAnExpression
        else:
            raise NotAnExpression
        if not digits.isdigit() or len(digits) > 40 or self._peek()[:1].isdigit():
            raise NotAnExpression
        decimals = len(token.partition(".")[2])
        return Fraction(int(digits), (10 ** len(digits) - 1) * 10**decimals)

    def _root(self) -> Node:
        degree = self._group("]") if self._take("[") else ("number", Fraction(2))
        return ("root", degree, self._argument())

    def _extreme(self, name: str) -> Node:
        r"""Read ``\max(1, 2)`` or ``\min\{1, 2\}``."""
        closing = _CLOSING.get(self._next(), "")
        found = [self._sum()]
        while self._peek() in (",", ", "):
            self._at += 1
            found.append(self._sum())
        if not closing or not self._take(closing) or len(found) < 2:
            raise NotAnExpression
        return (name, *found)

    def _function(self, name: str) -> Node:
        base = exponent = None
        if name == "log" and self._take("_"):
            base = self._argument()
        if self._take("^"):
            exponent = self._exponent()
            if exponent == ("sum", ((-1, ("number", Fraction(1))),)):
                name, exponent = f"arc{name}", None
                if name not in ("arcsin", "arccos", "arctan"):
                    raise NotAnExpression
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotAnExpression
        argument = self._function_argument()
        self._depth -= 1
        node = ("log", base, argument) if base is not None else (name, argument)
        return node if exponent is None else ("power", node, exponent)

    def _function_argument(self) -> Node:
        r"""Read ``(x)``, or factors up to the next sign or function, as in ``\sin 2x \cos x``."""
        if self._peek() in ("(", "[", "|", "{"):
            return self._atom()
        factors = [(False, self._factor())]
        while self._begins_factor(self._peek()) and self._peek() not in (*_COMMAND_FUNCTIONS, "(", "["):
            factors.append((False, self._factor()))
        after = self._tokens[self._at + 1 : self._at + 2] if self._peek() == "/" else ()
        if after and after[0] not in _COMMAND_FUNCTIONS:
            raise NotAnExpression  # \sin x/2 is read both ways
        return factors[0][1] if len(factors) == 1 else ("product", tuple(factors))

    def _letter(self, token: str) -> Node:
        if token[1:] in ACCENTS:
            token += self._raw_group()
        subscript = self._raw_group() if self._take("_") else ""
        primes = ""
        while self._take("'"):
            primes += "'"
        if token in ("e", "i") and not subscript and not primes:
            self.is_complex |= token == "i"
            return ("constant", token)
        name = f"{token}{f'_{subscript}' if subscript else ''}{primes}"
        self.letters.add(name)
        return ("letter", name)

    def _raw_group(self) -> str:
        """Return a group's tokens as they are, or one token."""
        if not self._take("{"):
            token = self._next()
            if not token.strip("\\").isalnum():
                raise NotAnExpression
            return token
        depth, start = 1, self._at
        while depth:
            token = self._next()
            if not token:
                raise NotAnExpression
            depth += (token == "{") - (token == "}")
        return " ".join(self._tokens[start : self._at - 1])


def _proper(above: Fraction, below: Fraction) -> Fraction:
    """Return the fraction of a mixed number."""
    if not (0 <= above < below and above.denominator == below.denominator == 1):
        raise NotAnExpression
    return above / below


def number_of(token: str) -> Fraction:
    """Return the exact value of a number's token. Raises NotAnExpression when it is too large to write down."""
    mantissa, mark, exponent = token.replace("E", "e").partition("e")
    if len(mantissa) > MAX_NUMBER or (mark and abs(int(exponent)) > MAX_NUMBER):
        raise NotAnExpression
    value = Fraction(mantissa)
    return value * Fraction(10) ** int(exponent) if mark else value
