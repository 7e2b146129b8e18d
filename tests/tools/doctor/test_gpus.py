from __future__ import annotations

import ctypes

import pytest

from lpo_ray.tools.doctor import gpus


class Library:
    """libcuda.so.1, as far as it is asked."""

    def __init__(self, status: int, number: int) -> None:
        self._status, self._number = status, number

    def cuDriverGetVersion(self, pointer: ctypes._Pointer[ctypes.c_int]) -> int:
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = self._number
        return self._status


@pytest.mark.parametrize(
    ("status", "number", "supported"),
    [(0, 13000, "13.0"), (0, 12080, "12.8"), (0, 11080, "11.8"), (0, 12100, "12.10"), (0, 0, None), (34, 13000, None)],
)
def test_what_the_driver_supports(
    monkeypatch: pytest.MonkeyPatch, status: int, number: int, supported: str | None
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(status, number))
    assert gpus.driver_supports() == supported


@pytest.mark.parametrize("library", ["libno-such-driver.so.1", "libc.so.6"])
def test_without_a_driver_nothing_is_supported(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setattr(gpus, "DRIVER", library)
    assert gpus.driver_supports() is None
