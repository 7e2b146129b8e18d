"""Changes that a program makes to the arguments of a call, where the tests look at them.

The program gets copies. After a call whose value the tests do not look at, their contents come back, into the lists,
dicts and sets that the tests hold. After any other call only those of variables come back of which that was found to be
safe beforehand; the others are what they were, or a program could empty what its value is compared with. It is safe
also where a test compares with a copy from before the call. So that this is one, however deep, it is copied here again.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

from lpo_ray.verifiers.sandbox.inside.link import StandIn
from lpo_ray.verifiers.sandbox.inside.wire import DEPTH

CALL, COPY = "called in place", "copied before"
"""what the tests call to say so: no names that a text of Python can have"""
_CHANGING = (list, dict, set, bytearray)
_PLAIN = (*_CHANGING, tuple, frozenset, str, bytes, int, float, complex, type(None))
_COPYING = frozenset((
    "list", "tuple", "sorted", "set", "frozenset", "dict", "sum", "len", "max", "min", "str", "int", "float", "abs",
    "range", "bytes", "bytearray", "copy", "deepcopy", "Counter", "deque", "OrderedDict",
))  # fmt: skip


def compiled(text: str, name: str, changed: frozenset[str], copies: frozenset[str]) -> CodeType:
    """Compile tests, with a mark at each call whose value is thrown away or only compared with None, at those that are
    given variables in ``changed``, for these alone, and at what variables in ``copies`` are set to.
    """
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    unread = [node.value for node in nodes if isinstance(node, ast.Expr)] + [*filter(None, map(_is_it_none, nodes))]
    unread += _unread_locals(nodes, unread)
    thrown_away = {id(node) for node in unread}
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if copied_by(targets, node.value) in copies:
                node.value = ast.copy_location(ast.Call(ast.Name(COPY, ast.Load()), [node.value], []), node)
        if not isinstance(node, ast.Call):
            continue
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        some = [isinstance(each, ast.Name) and each.id in changed for each in given]
        if id(node) in thrown_away:
            may_change = ast.Constant(None)
        elif any(some) and not _has_stars(node):
            may_change = ast.List([ast.Constant(each) for each in some], ast.Load())
        else:
            continue
        node.func = ast.copy_location(ast.Call(ast.Name(CALL, ast.Load()), [node.func, may_change], []), node.func)
    return compile(ast.fix_missing_locations(tree), name, "exec", dont_inherit=True)


def copied_by(targets: Sequence[ast.expr], value: ast.AST) -> str | None:
    """Return the one name that is set to a new value, made at once of others; None where it may be one of those."""
    if len(targets) != 1 or not isinstance(targets[0], ast.Name):
        return None
    return targets[0].id if _is_new(value) else None


def _is_new(value: ast.AST) -> bool:
    if isinstance(value, ast.Call):
        function = value.func
        is_method = isinstance(function, ast.Attribute) and function.attr in ("copy", "deepcopy")
        return is_method or (isinstance(function, ast.Name) and function.id in _COPYING)
    if isinstance(value, ast.List | ast.Tuple | ast.Set):
        return all(map(_is_new, value.elts))
    if isinstance(value, ast.Subscript):
        return isinstance(value.slice, ast.Slice)
    return isinstance(value, ast.ListComp | ast.SetComp | ast.DictComp | ast.BinOp | ast.Constant | ast.UnaryOp)


def _unread_locals(nodes: Sequence[ast.AST], unread: Sequence[ast.expr]) -> list[ast.expr]:
    """Return what is assigned to variables of functions that are read nowhere but in ``unread``. Other texts may read
    those that are no function's.
    """
    skipped = {id(node) for node in unread}
    read: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store) and id(node) not in skipped:
            read.add(node.id)
        elif isinstance(node, ast.AugAssign):
            read |= {part.id for part in ast.walk(node.target) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.Global):
            read |= {*node.names}
    return [
        node.value
        for function in nodes
        if isinstance(function, ast.FunctionDef)
        for node in function.body
        if isinstance(node, ast.Assign) and all(isinstance(to, ast.Name) and to.id not in read for to in node.targets)
    ]


def _is_it_none(node: ast.AST) -> ast.expr | None:
    """Return what a test asks this of, if that is all it asks."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Is | ast.IsNot):
        right = node.comparators[0]
        return node.left if isinstance(right, ast.Constant) and right.value is None else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "assertIsNone":
        return node.args[0] if node.args else None
    return None


def _has_stars(call: ast.Call) -> bool:
    return any(isinstance(each, ast.Starred) for each in call.args) or any(each.arg is None for each in call.keywords)


class InPlace:
    """Function that the marks in the tests call."""

    def __init__(self) -> None:
        self._are_copies = True

    def copied(self, value: Any) -> Any:  # noqa: ANN401 - any value
        """Return a copy that shares nothing with what it is a copy of. Of objects of the tests' own classes it would be
        another one: then no variable is safe to change any more.
        """
        if _is_plain(value, _PLAIN):
            return copy.deepcopy(value)
        self._are_copies = False
        return value

    def called(self, function: Any, may_change: Sequence[bool] | None) -> Any:  # noqa: ANN401 - any value
        """Return what to call in place of a function: itself, if it is the tests' own. ``may_change``: whether each of
        its arguments may; None: all.
        """
        if type(function) is not StandIn or not (may_change is None or self._are_copies):
            return function
        return _in_place(function, may_change)


def _in_place(function: StandIn, may_change: Sequence[bool] | None) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any value
        given = [*args, *kwargs.values()]
        link = function.__dict__["_link"]
        plain = (*_PLAIN, *link.classes.values())
        changing = (*_CHANGING, *link.classes.values())
        if not any(isinstance(value, changing) and _is_plain(value, plain) for value in given):
            return function(*args, **kwargs)
        value, changed, by_name = link.change(function, args, kwargs)
        may = [True] * len(given) if may_change is None else may_change
        for old, new, may_be in zip(given, [*changed, *(by_name[name] for name in kwargs)], may, strict=True):
            if may_be and _is_plain(old, plain):
                _put(old, new)
        return value

    return call


def _is_plain(value: Any, plain: tuple[type, ...], depth: int = DEPTH) -> bool:  # noqa: ANN401 - any value
    """Tell whether all in a value is of the types ``plain``, so that what comes back is as good: an object of another
    class would be another one.
    """
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return depth > 0 and all(_is_plain(part, plain, depth - 1) for part in value)
    return isinstance(value, plain)


def _put(old: Any, new: Any) -> Any:  # noqa: ANN401 - any value
    """Make ``old`` have the contents of ``new``, and what it holds too where it is of one type; return it, or ``new``
    if it cannot change.
    """
    if isinstance(old, list) and type(new) is list:
        old[:] = [_put(old[place], part) if place < len(old) else part for place, part in enumerate(new)]
    elif isinstance(old, dict) and type(new) is dict:
        parts = {key: _put(old[key], part) if key in old else part for key, part in new.items()}
        old.clear()
        old.update(parts)
    elif isinstance(old, set) and type(new) is set:
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray) and type(new) is bytearray:
        old[:] = new
    else:
        return new
    return old
