"""Docstrings and comments of the code: the modules, classes, attributes, files and settings that they name exist."""

from __future__ import annotations

import ast
import builtins
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.pages import ROOT, SECTIONS, exists

SOURCES = sorted(path for top in ("lpo_ray", "actors") for path in (ROOT / top).rglob("*.py"))
QUOTED = re.compile(r"``([^`\n]+)``")
DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
PATH = re.compile(r"(?:[\w.-]+/)+[\w.-]+\.(?:py|md|yaml|json|sh|html|js)\b")
SEE = re.compile(r"\b[Ss]ee (?:``)?([A-Za-z_][\w.]*[\w])")
PLAIN_WORDS = re.compile(r"[a-z]+")
"""words of a sentence: \"see the paper\""""
DATA = ("json", "jsonl", "html", "yaml", "sqlite", "md", "toml", "js", "parquet")
"""endings of files that runs and tools write"""
EXAMPLES = ("file.py", "my_file.py", "my_task.py")
"""files of a user"""
OF_LIBRARIES = ("torch", "vllm", "ray", "deepspeed", "transformers", "numpy", "np", "os", "sys", "json", "asyncio")


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring and comment."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
    with path.open("rb") as lines:
        for token in tokenize.tokenize(lines.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


@cache
def defined() -> dict[str, set[str]]:
    """What each module (by its dotted and its last name) and class holds: functions, classes, constants, attributes."""
    found: dict[str, set[str]] = {}

    def add(owner: str, names: set[str]) -> None:
        found.setdefault(owner, set()).update(names)

    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = names_in(tree.body)
        for size in range(1, len(parts) + 1):
            add(".".join(parts[-size:]), names)
        for size in range(1, len(parts)):
            add(".".join(parts[:size]), {parts[size]})
            add(parts[size - 1], {parts[size]})
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                inside = names_in(node.body) | {
                    target.attr for target in ast.walk(node)
                    if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store)
                }  # fmt: skip
                add(node.name, inside)
                for base in node.bases:
                    bases.setdefault(node.name, set()).add(ast.unparse(base).split("[")[0].split(".")[-1])
    return found


bases: dict[str, set[str]] = {}


def names_in(body: list[ast.stmt]) -> set[str]:
    names: set[str] = set()
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name for alias in aliases}
            case ast.If(body=inside) | ast.Try(body=inside):
                names |= names_in(inside)
            case _:
                pass
    return names


def holds(owner: str, name: str) -> bool:
    """Whether module or class ``owner`` has ``name``, itself or from a base class; what is not ours is believed."""
    if name in defined().get(owner, set()):
        return True
    above = bases.get(owner, set())
    return any(holds(base, name) if base in defined() else not hasattr(builtins, base) for base in above)


def is_true(name: str) -> bool:
    """Whether a dotted name is one of ours that exists, a setting that exists, or of nobody we know."""
    first, *rest = name.split(".")
    if rest[-1:] == ["py"]:
        return name in EXAMPLES or any(source.name == name for source in SOURCES)
    if rest[-1:] in ([kind] for kind in DATA):
        return True
    if first in SECTIONS and exists(name):
        return True
    if first not in defined() or first in OF_LIBRARIES:
        return True
    owner = first
    for size in range(len(rest), -1, -1):
        if ".".join([first, *rest[:size]]) in defined():
            owner, rest = ".".join([first, *rest[:size]]), rest[size:]
            break
    for part in rest:
        if not holds(owner, part):
            return False
        owner = part
        if owner not in defined():
            return True
    return True


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_docstring_or_comment_names_exists(path: Path) -> None:
    wrong = []
    for line, text in words_of(path):
        named = {
            word for quoted in QUOTED.findall(text) for word in DOTTED.findall(re.sub(r"[\'\"].*?[\'\"]", "", quoted))
        }
        named |= {word for word in SEE.findall(text) if "." in word}
        wrong += [(line, word) for word in named if not is_true(word)]
        wrong += [(line, word) for word in PATH.findall(text) if ours(word) and not there(word, path)]
        wrong += [
            (line, word) for word in SEE.findall(text)
            if "." not in word and not PLAIN_WORDS.fullmatch(word) and not anywhere(word)
        ]  # fmt: skip
    assert wrong == []


def ours(path: str) -> bool:
    return path.split("/")[0] in {"lpo_ray", "actors", "tests", "configs", "docs", "launch", "docker", "tools"}


def there(word: str, source: Path) -> bool:
    return any((base / word).exists() for base in (ROOT, ROOT / "lpo_ray", ROOT / "actors", source.parent))


def anywhere(word: str) -> bool:
    return word in defined() or any(word in names for names in defined().values())


def test_a_name_that_does_not_exist_is_found() -> None:
    assert is_true("lpo_ray.objective.project") and is_true("pipeline.max_staleness") and is_true("torch.nn.Nothing")
    assert not is_true("lpo_ray.objective.nothing") and not is_true("Ledger.nothing") and is_true("Ledger.issue")
    assert not is_true("layout.Nothing") and is_true("layout.AttentionRows")
