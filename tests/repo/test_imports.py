"""What test modules share lies in tests/support: none imports another."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]


def imported_by(path: Path) -> set[str]:
    """Names of all modules, and of what is taken from them, at any depth of the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names} | {node.module or ""}
    return found


def test_no_module_imports_a_test_module() -> None:
    tests = {".".join(path.relative_to(TESTS.parent).with_suffix("").parts) for path in TESTS.rglob("test_*.py")}
    assert len(tests) > 100
    wrong = {path.name: imported_by(path) & tests for path in TESTS.rglob("*.py")}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_library_fakes_load_no_ray() -> None:
    """``tests.support.fakes`` is for tests of the library; fakes of what runs on Ray are in ``ray_fakes``."""
    assert not [name for name in imported_by(TESTS / "support" / "fakes.py") if name.split(".")[0] in ("actors", "ray")]
