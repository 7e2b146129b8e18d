from __future__ import annotations

import pytest

from lpo_ray.common.held import Held


def test_a_name_is_held_from_the_first_of_the_calls_that_overlap_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held[str]()
    times = iter([5.0, 6.0, 7.0])
    monkeypatch.setattr("lpo_ray.common.held.time.time", lambda: next(times))
    first, second = held.during("a"), held.during("a")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert held == {"a": 5.0}
    second.__exit__(None, None, None)
    assert held == {}
    with pytest.raises(OSError, match="lost"), held.during("a"):
        assert held == {"a": 7.0}
        raise OSError("lost")
    assert held == {}
