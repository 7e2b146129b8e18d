"""Which variables of a test the program may change where the value of its call is read too.

LeetCode's "remove in place" returns a length and leaves the rest in its argument. But a program that empties its
argument and returns nothing must not pass ``assert f(a) == sorted(a)``. So a change counts only for a variable whose
contents are compared with nothing that comes from it or from the program, and decide nothing else.

What was copied or computed from it before the program was called does not come from it in this sense: the tests' side
makes it a copy of its own (``inside.in_place``).
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator

from lpo_ray.verifiers.sandbox.call_tests import Changes
from lpo_ray.verifiers.sandbox.inside.in_place import copied_by
from lpo_ray.verifiers.unit_tests.names import BUILTINS, base_of, decisions, flows_of, imports_of, targets_of


def changes_of(tree: ast.Module, program: Collection[str], reaching: Collection[str]) -> Changes:
    """Find the variables that are passed to the program and may come back changed. ``reaching``: names whose values
    depend on the program.
    """
    tree = _Scopes().visit(tree)
    reaching = _reached(tree, program, reaching)
    called = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and base_of(node.func) in reaching]
    passed = {
        value.id
        for call in called
        for value in [*call.args, *(keyword.value for keyword in call.keywords)]
        if isinstance(value, ast.Name)
    }
    theirs = {*program, "candidate"}
    variables: list[str] = []
    copies: set[str] = set()
    for name in sorted(passed - theirs):
        held = _Held(tree, name, reaching)
        if _is_safe(tree, name, held.names, theirs, reaching):
            variables.append(name)
            copies |= held.copies
    return Changes(tuple(variables), tuple(sorted(copies)), tuple(sorted(passed - theirs - {*variables})))


def _reached(tree: ast.Module, program: Collection[str], reaching: Collection[str]) -> set[str]:
    """Return those of ``reaching`` whose values are made of the program's, and not only chosen by them: not ``nums``
    for ``nums[:k] = sorted(nums[:k])``.
    """
    flows = [({name for each in targets for name in targets_of(each)}, value) for targets, value in flows_of(tree)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            given = [*node.value.args, *(each.value for each in node.value.keywords)]
            flows.append(({name for each in given for name in targets_of(each)}, node.value.func))
    reached = {*program, "candidate", *reaching} - {
        name for targets, _ in flows for name in targets - {*program, "candidate"}
    }
    grown = True
    while grown:
        found = {name for targets, value in flows if reached & {*_names(value, ())} for name in targets}
        grown = not found <= reached
        reached |= found
    return reached


class _Scopes(ast.NodeTransformer):
    """Gives the variables of each comprehension names of their own, as its scope does."""

    def __init__(self) -> None:
        self._count = 0

    def _renamed(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> ast.AST:
        outside, node.generators[0].iter = self.visit(node.generators[0].iter), ast.Constant(None)
        own = {name for part in node.generators for name in targets_of(part.target)}
        self._count += 1
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id in own:
                part.id = f"{part.id} {self._count}"
        self.generic_visit(node)
        node.generators[0].iter = outside
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _renamed


class _Held:
    """The names that may hold what a variable holds, or a value that is made of it after the program may have had it.

    A copy from before holds nothing of it. So ``copies`` are the names of those.
    """

    def __init__(self, tree: ast.Module, name: str, reaching: Collection[str]) -> None:
        self._reaching = reaching
        self._blocks = _Blocks(tree, reaching)
        self.names, self.copies, known = {name}, set[str](), 0
        flows = list(flows_of(tree))
        while known < len(self.names):
            known = len(self.names)
            self.copies.clear()
            for targets, value in flows:
                self._follow(targets, value)

    def _follow(self, targets: list[ast.expr], value: ast.AST) -> None:
        read = set(_names(value, self._reaching))
        written = {target for each in targets for target in targets_of(each)}
        copy = copied_by(targets, value) if self._blocks.is_assigned(value) else None
        if copy is not None:
            read -= _set_names(value)  # variables of a comprehension
            if read & self.names and not self._blocks.is_fresh(read & self.names, value):
                self.names.add(copy)
            elif read & self.names or copy in self.names:
                self.copies.add(copy)
            return
        if read & self.names:
            self.names |= written
        if isinstance(value, ast.expr) and any(
            isinstance(each, ast.Name) and each.id in self.names for each in targets
        ):
            self.names |= read if len(targets) == 1 and not isinstance(targets[0], ast.Tuple) else set()


class _Blocks:
    """The statements of a text, each with what stands before it and what it is in."""

    def __init__(self, tree: ast.Module, reaching: Collection[str]) -> None:
        self._known = {*BUILTINS, *imports_of(tree)} - _defined(tree)
        self._reaching = {*reaching, "self", "cls"}
        self._around: dict[int, tuple[list[ast.stmt], int, ast.AST]] = {}
        self._of_value: dict[int, ast.AST] = {}
        for owner in ast.walk(tree):
            for field in ("body", "orelse", "finalbody"):
                block = getattr(owner, field, None)
                if isinstance(block, list):
                    self._around.update({id(part): (block, at, owner) for at, part in enumerate(block)})
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                self._of_value[id(node.value)] = node

    def is_assigned(self, value: ast.AST) -> bool:
        """Tell whether names are set to a value, and the program has no part in it."""
        return id(value) in self._of_value and not _all_names(value) & self._reaching

    def is_fresh(self, names: Iterable[str], value: ast.AST) -> bool:
        """Tell whether the program cannot have had what ``names`` hold when a statement sets something to ``value``."""
        return all(self._is_fresh_at(self._of_value[id(value)], name) for name in names)

    def _is_fresh_at(self, statement: ast.AST, name: str) -> bool:
        if name in self._known:
            return True
        if id(statement) not in self._around:
            return False
        block, at, owner = self._around[id(statement)]
        for before in reversed(block[:at]):
            names = _all_names(before)
            if names & self._reaching:
                return False
            if isinstance(before, ast.Assign | ast.AnnAssign) and before.value is not None:
                targets = before.targets if isinstance(before, ast.Assign) else [before.target]
                if name in {target for each in targets for target in targets_of(each)}:
                    is_name = len(targets) == 1 and isinstance(targets[0], ast.Name | ast.Tuple)
                    return is_name and self._are_fresh_at(before, before.value)
            elif name in names and name in _set_names(before):
                return False
        if isinstance(owner, ast.For) and block is owner.body and name in targets_of(owner.target):
            return self._are_fresh_at(owner, owner.iter)
        return isinstance(owner, ast.With | ast.If | ast.Try) and self._is_fresh_at(owner, name)

    def _are_fresh_at(self, statement: ast.AST, value: ast.AST) -> bool:
        names = _all_names(value) - _set_names(value)
        return not names & self._reaching and all(self._is_fresh_at(statement, each) for each in names)


def _is_safe(
    tree: ast.Module, name: str, held: Collection[str], program: Collection[str], reaching: Collection[str]
) -> bool:
    if any(set(held) & set(_names(node, reaching)) for node in _controls(tree, name, reaching)):
        return False
    for left, right in decisions(tree, program):
        if set(held) & set(_names(left, reaching)) and set(_names(right, ())) & {*held, *reaching}:
            return False
    return True


def _controls(tree: ast.Module, name: str, reaching: Collection[str]) -> Iterator[ast.AST]:
    """List what decides whether a test looks at something of the program's at all: not a loop over cases, of which
    ``name`` is one.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            yield node.test
        elif isinstance(node, ast.For) and name not in targets_of(node.target):
            yield node.iter
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("all", "any"):
            each = node.args[0] if node.args else node
            is_of_theirs = isinstance(each, ast.GeneratorExp | ast.ListComp) and not {*_names(each.elt, ())} & {
                *reaching
            }
            if not is_of_theirs:
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


def _all_names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _set_names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}


def _defined(tree: ast.Module) -> set[str]:
    """Return the names that the tests set or define themselves, anywhere."""
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return _set_names(tree) | arguments | {node.name for node in ast.walk(tree) if isinstance(node, definitions)}
