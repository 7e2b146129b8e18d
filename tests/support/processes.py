"""The processes of a run, known by an environment variable that its descendants inherit."""

from __future__ import annotations

import psutil


def marked(mark: str) -> list[psutil.Process]:
    """Every process with NAME=VALUE in its environment: Ray's daemons and workers detach, but keep it."""
    found = []
    for process in psutil.process_iter():
        try:
            if mark in {f"{k}={v}" for k, v in process.environ().items()}:
                found.append(process)
        except psutil.Error:
            continue
    return found
