"""Which tests of the real stack go to one process when two work side by side, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
LONGEST_FIRST = ("one_run", "engines", "test_conversations", "test_supervision", "test_jobs", "test_parts")
"""the last of the others are short, so that neither process waits long for the other"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares a cluster: the tests of a module, or of a package here."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=_rank)


def _group(item: pytest.Item) -> str:
    return Path(item.path.relative_to(HERE).parts[0]).stem


def _rank(item: pytest.Item) -> int:
    group = _group(item) if HERE in item.path.parents else ""
    return LONGEST_FIRST.index(group) if group in LONGEST_FIRST else len(LONGEST_FIRST)
