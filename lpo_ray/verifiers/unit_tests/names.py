"""Which names in a data set's tests are the program's. Decided by the tests' text alone, before any program runs.

A program must not define what judges it. So a name is the program's only where the tests leave no other reading: it is
the entry point, it is imported from ``solution``, or it is called and nobody defines it. Modules that tests forgot to
import are imported for them. Whatever else is defined nowhere makes the tests unreadable, and so do tests in which one
name of the program's would judge what another returned.
"""

from __future__ import annotations

import ast
import builtins
import symtable
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from lpo_ray.verdict import BadAnswer

MODULE = "solution"
"""module that tests import the program as"""
_ALIASES = {
    "np": "numpy", "numpy": "numpy", "pd": "pandas", "pandas": "pandas", "scipy": "scipy", "sympy": "sympy",
    "nx": "networkx", "networkx": "networkx", "torch": "torch", "plt": "matplotlib.pyplot", "pytest": "pytest",
}  # fmt: skip
_MEMBERS = {
    "math": ("isclose", "inf", "nan", "pi"),
    "typing": ("Any", "Callable", "Dict", "Iterable", "List", "Optional", "Set", "Tuple", "Union"),
    "collections": ("Counter", "OrderedDict", "defaultdict", "deque", "namedtuple"),
    "dataclasses": ("dataclass",),
    "datetime": ("date", "datetime", "timedelta"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "numpy": ("allclose", "array_equal"),
    "numpy.testing": ("assert_allclose", "assert_almost_equal", "assert_array_equal", "assert_array_almost_equal"),
    "pytest": ("approx",),
    "unittest": ("TestCase",),
}
"""what tests use most often without its import"""
_OWNER = {name: module for module, names in _MEMBERS.items() for name in names}
_BELIEVERS = ("all", "any", "bool", "assertFalse", "assertTrue")
BUILTINS = frozenset(dir(builtins))
_PREDEFINED = BUILTINS | {"__file__", "__name__"}


@dataclass(frozen=True, slots=True)
class Names:
    """Names in tests, by whose they are. Example: ``Names(("area",), frozenset({"area", "result"}), "import math")``"""

    program: tuple[str, ...]
    """those that are the program's"""
    reaching: frozenset[str]
    """these, and those whose values depend on them"""
    imports: str
    """imports that the tests forgot"""


def names_of(tests: str, given: str, entry_point: str | None, owner: str) -> Names:
    """Decide about each name that the tests read and do not define. ``given`` is the task's own code, which defines
    some; ``owner`` the class that may hold the entry point. Raises BadAnswer.
    """
    tree, read = ast.parse(tests), _undefined(tests)
    if "candidate" in read and not entry_point:
        raise BadAnswer("the tests call candidate; expected entry_point to name what it is")
    called, methods, bases, passed = _uses(tree)
    unknown = read - _defined(given) - {"candidate", entry_point}
    modules = {name for name in unknown & bases - called if _module(name)}
    members = unknown & _OWNER.keys() - modules
    unknown -= modules | members
    called |= methods - modules
    imported = _imported(tree)
    if entry_point:
        program = imported | (read | _calls_of_builtin(entry_point, called, read)) & {entry_point, owner}
    elif imported:
        program = imported
        _refuse_judges(tree, program)
    else:
        program = unknown & called or unknown & passed or _the_only(called & (_OWNER.keys() | BUILTINS))
        members -= program
        _refuse_judges(tree, program)
    if left := sorted(unknown - program):
        raise BadAnswer(
            f"the tests name {left[0]!r}, which nobody defines: a program that did would "
            "judge itself. Expected it in setup"
        )
    lines = [f"import {_module(name)} as {name}" for name in sorted(modules)]
    lines += [f"from {_OWNER[name]} import {name}" for name in sorted(members)]
    reaching = frozenset(_origins(tree, program | {"candidate"}, in_place=True))
    return Names(tuple(sorted(program)), reaching, "\n".join(lines))


def _calls_of_builtin(entry_point: str, called: set[str], read: set[str]) -> set[str]:
    """Return the entry point if it is called like one of Python's functions and the tests have no other name for it."""
    return {entry_point} & called & BUILTINS if "candidate" not in read else set()


def _uses(tree: ast.Module) -> tuple[set[str], set[str], set[str], set[str]]:
    """Return the names that are called, those of which a method is, those with an attribute, and arguments."""
    called: set[str] = set()
    methods: set[str] = set()
    passed: set[str] = set()
    bases = {n.value.id for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                called.add(node.func.id)
            else:
                methods |= {base for base in [base_of(node.func)] if base}
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            passed |= {part.id for part in arguments if isinstance(part, ast.Name)}
    return called, methods, bases, passed


def base_of(node: ast.expr) -> str | None:
    """Return the name that a chain of attributes, calls and items begins with."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _imported(tree: ast.Module) -> set[str]:
    """Return the names that the tests take from the program's module."""
    nodes = list(ast.walk(tree))
    aliases = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == MODULE
    }
    found = {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == MODULE
        for alias in node.names
        if alias.name != "*"
    }
    return found | {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
    }


def _undefined(code: str) -> set[str]:
    """Return the global names that code reads, and neither it nor Python defines."""
    top = symtable.symtable(code, "tests", "exec")
    tables = [top]
    for table in tables:  # grows meanwhile
        tables += table.get_children()
    symbols = [(table is top, symbol) for table in tables for symbol in table.get_symbols()]
    defined = {
        symbol.get_name()
        for is_top, symbol in symbols
        if (is_top or symbol.is_declared_global()) and (symbol.is_assigned() or symbol.is_imported())
    }
    read = {
        symbol.get_name() for is_top, symbol in symbols if symbol.is_referenced() and (is_top or symbol.is_global())
    }
    return read - defined - _PREDEFINED


def _defined(code: str) -> set[str]:
    """Return the names that code defines at its top."""
    symbols = symtable.symtable(code, "given", "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def imports_of(tree: ast.Module) -> set[str]:
    """Return the names that tests import from elsewhere than the program's module."""
    return {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if MODULE not in (alias.name, getattr(node, "module", ""))
    }


def _module(name: str) -> str | None:
    """Return the module that tests mean by a name; None when it is no module's."""
    return _ALIASES.get(name) or (name if name in sys.stdlib_module_names else None)


def _the_only(names: Collection[str]) -> set[str]:
    """Take the function of a task that is called like one of Python's: ``assert sum(10, 15) == 6``."""
    if len(names) > 1:
        raise BadAnswer(
            f"the tests call {', '.join(sorted(names))}; expected entry_point to say which is the program's"
        )
    return set(names)


def _refuse_judges(tree: ast.Module, program: Collection[str]) -> None:
    """Refuse tests in which one of the program's names decides about a value of another's: the program would be its own
    judge. Raises BadAnswer.
    """
    if len(program) < 2:
        return
    changed = _origins(tree, program, in_place=True)
    made = _origins(tree, program)  # what a program changed is the same object still
    pairs = [(left, right, changed) for left, right in decisions(tree, program)]
    pairs += [(left, right, made) for left, right in _identities(tree)]
    for left, right, origins in pairs:
        judged = _origins_of(right, origins)
        judges = _origins_of(left, origins) - judged if judged else set()
        if judges:
            raise BadAnswer(
                f"the tests leave it to {min(judges)!r} what {min(judged)!r} should "
                "return, and nobody but the program defines either. Expected one in setup, or entry_point"
            )


def _origins_of(node: ast.AST, origins: Mapping[str, set[str]]) -> set[str]:
    return {name for each in ast.walk(node) if isinstance(each, ast.Name) for name in origins.get(each.id, ())}


def _origins(tree: ast.Module, program: Collection[str], *, in_place: bool = False) -> dict[str, set[str]]:
    """Return, for each name, which of the program's names its values may come from; with ``in_place`` also by a call
    that changes its arguments.
    """
    origins: dict[str, set[str]] = {name: {name} for name in program}
    flows = list(flows_of(tree))
    for node in ast.walk(tree):
        if in_place and isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            flows.append(([*node.value.args, *(each.value for each in node.value.keywords)], node.value.func))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if MODULE in (alias.name, getattr(node, "module", "")):
                    origins.setdefault(alias.asname or alias.name, set()).add(alias.name)
    grown = True
    while grown:  # a value may be handed on and on
        grown = False
        for targets, value in flows:
            names = {part.id for part in ast.walk(value) if isinstance(part, ast.Name)}
            found = {origin for name in names for origin in origins.get(name, ())}
            for target in (name for each in targets for name in targets_of(each)):
                if found - origins.setdefault(target, set()):
                    origins[target] |= found
                    grown = True
    return {name: found for name, found in origins.items() if found}


def flows_of(tree: ast.Module) -> Iterator[tuple[list[ast.expr], ast.AST]]:
    """List the targets that are set, and what each gets its value from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            yield node.targets, node.value
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value is not None:
            yield [node.target], node.value
        elif isinstance(node, ast.For | ast.comprehension):
            yield [node.target], node.iter
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            yield [node.optional_vars], node.context_expr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield [ast.Name(node.name)], node


def targets_of(target: ast.expr) -> list[str]:
    """Return the names that an assignment changes."""
    if isinstance(target, ast.Tuple | ast.List | ast.Starred):
        return [part.id for part in ast.walk(target) if isinstance(part, ast.Name)]
    name = base_of(target)
    return [name] if name else []


def decisions(tree: ast.Module, program: Collection[str]) -> Iterator[tuple[ast.AST, ast.AST]]:
    """List pairs of which the first decides what the second should be: of a comparison both ways, and the function and
    the arguments of a call that a test believes. For comparisons of identity see ``_identities``.
    """
    set_to = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and not all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            sides = [node.left, *node.comparators]
            yield from ((a, b) for a in sides for b in sides if a is not b)
        elif isinstance(node, ast.Assert):
            yield from _believed(node.test, set_to)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            base = base_of(node.value.func)
            if base in program or base == "self":  # a method of another value is no test
                yield from _believed(node.value, set_to)


def _identities(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST]]:
    """List pairs of which a test asks whether they are one object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            sides = [node.left, *node.comparators]
            yield from ((a, b) for a in sides for b in sides if a is not b)


def _believed(node: ast.expr, set_to: Mapping[str, ast.expr]) -> Iterator[tuple[ast.AST, ast.AST]]:
    """List what decides in an expression that is taken as true or false, or for its error. ``set_to``: expressions that
    names stand for.
    """
    if isinstance(node, ast.Name) and node.id in set_to:
        yield from _believed(set_to[node.id], {name: value for name, value in set_to.items() if name != node.id})
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _believed(value, set_to)
    elif isinstance(node, ast.UnaryOp):
        yield from _believed(node.operand, set_to)
    elif isinstance(node, ast.Compare):
        if any(isinstance(side, ast.Constant) and isinstance(side.value, bool) for side in node.comparators):
            yield from _believed(node.left, set_to)
    elif isinstance(node, ast.GeneratorExp | ast.ListComp):
        yield from _believed(node.elt, set_to)
    elif isinstance(node, ast.Call):
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for argument in arguments:
            yield (node.func, argument)
            if name in _BELIEVERS:
                yield from _believed(argument, set_to)
            elif name.startswith("assert"):
                yield from ((argument, other) for other in arguments if other is not argument)
