"""Which variables of a test the program may change where the value of its call is read too.

LeetCode's "remove in place" returns a length and leaves the rest in its argument. But a program that empties its
argument and returns nothing must not pass ``assert f(a) == sorted(a)``. So a change counts only for a variable whose
contents are compared with nothing that comes from it or from the program, and decide nothing else.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

from lpo_ray.verifiers.unit_tests.names import base_of, decisions, flows_of, targets_of


def changeable(tree: ast.Module, program: Collection[str], reaching: Collection[str]) -> tuple[str, ...]:
    """List the variables that are passed to the program and may come back changed. ``reaching``: names whose values
    depend on the program.
    """
    called = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and base_of(node.func) in reaching]
    passed = {
        value.id
        for call in called
        for value in [*call.args, *(keyword.value for keyword in call.keywords)]
        if isinstance(value, ast.Name)
    }
    theirs = {*program, "candidate"}
    return tuple(sorted(name for name in passed - theirs if _is_safe(tree, name, theirs, reaching)))


def _is_safe(tree: ast.Module, name: str, program: Collection[str], reaching: Collection[str]) -> bool:
    held = _holding(tree, name, reaching)
    if any(held & set(_names(node, reaching)) for node in _controls(tree)):
        return False
    for left, right in decisions(tree, program):
        if held & set(_names(left, reaching)) and set(_names(right, ())) & {*held, *reaching}:
            return False
    return True


def _holding(tree: ast.Module, name: str, reaching: Collection[str]) -> set[str]:
    """Return the names that may hold what ``name`` holds, or a value made of it other than by the program."""
    held, grown = {name}, True
    while grown:
        grown = False
        for targets, value in flows_of(tree):
            read = set(_names(value, reaching))
            written = {target for each in targets for target in targets_of(each)}
            found = written if read & held else set()
            if isinstance(value, ast.expr) and any(isinstance(each, ast.Name) and each.id in held for each in targets):
                found = found | read if len(targets) == 1 and not isinstance(targets[0], ast.Tuple) else found
            grown = grown or bool(found - held)
            held |= found
    return held


def _controls(tree: ast.Module) -> Iterator[ast.AST]:
    """List what decides whether a test looks at something at all."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            yield node.test
        elif isinstance(node, ast.For):
            yield node.iter
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("all", "any"):
            yield node


def _names(node: ast.AST, reaching: Collection[str]) -> Iterator[str]:
    """List the names that a value comes from: not those that choose a part of it, nor what is given to the program."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Subscript):
        yield from _names(node.value, reaching)
    elif not (isinstance(node, ast.Call) and base_of(node.func) in reaching):
        for part in ast.iter_child_nodes(node):
            yield from _names(part, reaching)
