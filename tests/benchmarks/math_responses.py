"""Groups of responses to mathematics problems, made of numbers: the kinds of answers of MATH in their shares."""

from __future__ import annotations

from random import Random

from lpo_ray.verifiers.calling.case import Case

GROUP_SIZE = 8
REASONING = (
    "We are given that $f({0}) = {1}$ and that the sum of the first {0} terms is $S = \\frac{{{0}({0}+1)}}{{2}}$. ",
    "Substituting $x = {1}$, we get \\[ x^2 - {0}x + {1} = 0, \\] so that $(x - {0})(x + {1}) > 0$. ",
    "Therefore, by the Pythagorean theorem, $AB = \\sqrt{{{0}^2 + {1}^2}}$, which we simplify below. ",
    "Wait, let me check that again: {0} times {1} is not what I wrote above, so I start over.\n\n",
)
Kind = tuple[str, list[str], list[str]]
"""the answer, right boxes, wrong boxes"""


def integer(a: int, b: int) -> Kind:
    value = a * b + 1000 * (a % 3)
    grouped = f"{value:,}"
    return str(value), [str(value), grouped, f"{value}.0", f"x = {value}"], [str(value + 1), str(a), f"-{value}"]


def fraction(a: int, b: int) -> Kind:
    right = [f"\\frac{{{a}}}{{{b}}}", f"\\dfrac{{{2 * a}}}{{{2 * b}}}", f"{a}/{b}"]
    return f"\\frac{{{a}}}{{{b}}}", right, [f"\\frac{{{b}}}{{{a}}}", str(a), f"\\frac{{{a}}}{{{b + 1}}}"]


def root(a: int, b: int) -> Kind:
    b += 1
    right = [f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}"]
    return f"{a}\\sqrt{{{b}}}", right, [f"\\sqrt{{{a * b}}}", f"{a + 1}\\sqrt{{{b}}}", str(a)]


def multiple_of_pi(a: int, b: int) -> Kind:
    right = [f"{a}\\pi", f"\\frac{{{a * b}\\pi}}{{{b}}}"]
    return f"{a}\\pi", right, [f"{a + b}\\pi", f"{a}", f"\\frac{{{a}}}{{\\pi}}"]


def polynomial(a: int, b: int) -> Kind:
    right = [f"x^2+{a}x+{b}", f"{b} + {a}x + x^2"]
    return f"x^2 + {a}x + {b}", right, [f"x^2-{a}x+{b}", f"(x+{a})(x+{b})", f"x^3+{a}x"]


def interval(a: int, b: int) -> Kind:
    right = [f"[{a}, {a + b})", f"\\left[{a},{a + b}\\right)"]
    return f"[{a},{a + b})", right, [f"({a},{a + b})", f"[{a},{a + b + 1})", f"({a},\\infty)"]


def pair(a: int, b: int) -> Kind:
    right = [f"({a}, {b})", f"\\left({a}, \\frac{{{2 * b}}}{{2}}\\right)"]
    return f"({a},{b})", right, [f"({b}, {a + 1})", f"({a}, {b}, 0)", str(a)]


def roots_of(a: int, b: int) -> Kind:
    b += a
    right = [f"{a}, {b}", f"{b},{a}", f"\\{{{a}, {b}\\}}"]
    return f"{a},{b}", right, [f"{a}, {b + 1}", str(a), f"-{a}, {b}"]


def matrix(a: int, b: int) -> Kind:
    def of(*entries: object) -> str:
        return "\\begin{{pmatrix}} {} & {} \\\\ {} & {} \\end{{pmatrix}}".format(*entries)

    return of(a, b, 0, 1), [of(a, b, 0, 1), of(a, f"\\frac{{{2 * b}}}{{2}}", 0, 1)], [of(a, b, 1, 0), of(b, a, 0, 2)]


def text(a: int, b: int) -> Kind:
    names = ["Evelyn", "Navin", "Tuesday", "ellipse"]
    name, other = names[a % 4], names[(a + 1) % 4]
    return f"\\text{{{name}}}", [f"\\text{{{name}}}", name], [other, f"\\text{{{other}}}", str(b)]


SHARES = (
    (integer, 58), (fraction, 14), (root, 7), (multiple_of_pi, 4), (polynomial, 5), (interval, 2), (pair, 4),
    (roots_of, 3), (matrix, 1), (text, 2),
)  # fmt: skip


def math_group(number: int) -> list[Case]:
    """About half right; one in ten without a box or cut off inside it; responses of 1,000 to 6,000 characters."""
    rng = Random(number)
    kind = rng.choices([kind for kind, _ in SHARES], [share for _, share in SHARES])[0]
    answer, right, wrong = kind(rng.randint(2, 60), rng.randint(2, 60))
    return [Case("", _response(rng, right, wrong), answer) for _ in range(GROUP_SIZE)]


def _response(rng: Random, right: list[str], wrong: list[str]) -> str:
    sentences = rng.choices(REASONING, k=rng.randint(10, 60))
    reasoning = "".join(sentence.format(rng.randint(2, 99), rng.randint(2, 99)) for sentence in sentences)
    box = rng.choice(right if rng.random() < 0.5 else wrong)
    kind = rng.random()
    if kind < 0.05:
        return reasoning
    if kind < 0.1:
        return f"{reasoning}\\boxed{{{box}"
    return f"{reasoning}The answer is $\\boxed{{{box}}}$."
