"""One run for all modules here: each start of one costs half a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.run_history import History, live


@pytest.fixture(scope="package")
def history(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> History:
    return live(tmp_path_factory.mktemp("runs"), tiny_policy)
