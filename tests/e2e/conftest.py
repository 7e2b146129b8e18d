"""Order of the tests of the real stack."""

from __future__ import annotations

import pytest

from tests.support.side_by_side import rank


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: rank(item.nodeid))
