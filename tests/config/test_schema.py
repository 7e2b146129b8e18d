"""Users read the schema as the reference of all keys: each has one docstring, below its field."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lpo_ray.config import schema

SECTIONS = [
    node
    for path in sorted(Path(schema.__file__).parent.glob("*.py"))
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.ClassDef)
]
FIELDS = [
    pytest.param(section.body, at, id=f"{section.name}.{ast.unparse(node.target)}")
    for section in SECTIONS
    for at, node in enumerate(section.body)
    if isinstance(node, ast.AnnAssign) and not ast.unparse(node.annotation).endswith("Config")
]


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@pytest.mark.parametrize(("body", "at"), FIELDS)
def test_every_field_has_exactly_one_docstring(body: list[ast.stmt], at: int) -> None:
    assert [is_docstring(node) for node in body[at + 1 : at + 3]] in ([True], [True, False])


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_every_section_has_a_docstring(section: ast.ClassDef) -> None:
    assert ast.get_docstring(section)
