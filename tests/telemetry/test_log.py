"""log.jsonl: whole lines after a kill, no secrets, and what a terminal shows of it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from lpo_ray.telemetry.log import LogFile, LogLine, read_log
from tests.support.builders import NOON

LINE = LogLine(NOON, "warning", "rollout", "rollout worker 1", 12, "its engine is slow")


def test_a_line_is_rendered_in_columns_without_spaces() -> None:
    assert LINE.render() == "12:00:05 warning rollout rollout-worker-1 12 its engine is slow"
    assert LogLine(NOON, "info", "driver", "", None, "a\nb\r").render() == "12:00:05 info driver - - a\\nb\\r"


@pytest.mark.parametrize(
    ("name", "level", "source", "shown"),
    [
        ("lpo_ray.worker", logging.INFO, "", True),
        ("actors", logging.WARNING, "", True),
        ("lpo_ray_plugin", logging.WARNING, "lpo_ray_plugin", False),
        ("DeepSpeed", logging.WARNING, "DeepSpeed", False),
        ("vllm.engine", logging.ERROR, "vllm.engine", True),
        ("vllm.engine", logging.CRITICAL, "vllm.engine", True),
    ],
)
def test_a_terminal_shows_our_own_lines_and_errors_of_others(name: str, level: int, source: str, shown: bool) -> None:
    record = logging.LogRecord(name, level, __file__, 1, "slow", (), None)
    line = LogLine.of(record, "slow", "rollout", "rollout worker 1")
    assert (line.source, line.is_shown) == (source, shown)
    assert line.render().endswith(f" rollout-worker-1 - {source}: slow" if source else " rollout-worker-1 - slow")


def test_a_text_of_several_lines_is_shown_as_several() -> None:
    lines = list(LogLine(NOON, "info", "driver", "", 0, "it died:\n  a frame").lines())
    start = "12:00:05 info driver - 0 "
    assert [line.render() for line in lines] == [f"{start}it died:", f"{start}  a frame"]
    assert [line.text for line in LogLine(NOON, "info", "driver", "", 0, "").lines()] == [""]


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "run" / "log.jsonl")
    lines = [LINE, LogLine(NOON, "info", "driver", "", None, 'a "quote"\nand \ud800 half a character, ü')]
    assert [file.append(line) for line in lines] == lines
    file.close()
    assert list(read_log(tmp_path / "run" / "log.jsonl")) == lines
    assert list(read_log(tmp_path / "nothing.jsonl")) == []
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert list(first) == ["time", "level", "role", "worker", "step", "text", "source"]


@pytest.mark.parametrize("cut", ['{"time": 1.0, "lev', "{", " " * 200_000, ""])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_last_line_that_a_kill_cut_short_is_dropped(cut: str, before: int, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first = LogFile(path)
    for _ in range(before):
        first.append(LINE)
    first.close()
    with path.open("a") as file:
        file.write(cut)
    again = LogFile(path)
    again.append(LINE)
    again.append(LINE)
    assert len(path.read_text().splitlines()) == before + 2
    assert list(read_log(path)) == [LINE] * (before + 2)


def test_what_is_no_line_of_ours_is_left_out_when_reading(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    LogFile(path).append(LINE)
    with path.open("ab") as file:
        file.write(b'not json\n{"time": 1}\n[1, 2]\n\xff\xfe\n')
    assert list(read_log(path)) == [LINE]
    with pytest.raises(ValueError, match=r"is not a line of log\.jsonl"):
        LogLine.from_json('{"time": 1}')


def test_values_of_secrets_are_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a secret is, tests/repo/test_security.py says."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    line = LogLine(NOON, "info", "driver", "", 0, "logged in with 0123456789abcdef")
    assert LogFile(tmp_path / "log.jsonl").append(line).text == "logged in with <WANDB_API_KEY>"
    assert "0123456789abcdef" not in (tmp_path / "log.jsonl").read_text()


def test_a_line_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that append at once do not mix their lines."""
    written: list[bytes] = []

    def write(descriptor: int, data: bytes) -> int:
        written.append(data)
        return len(data)

    monkeypatch.setattr(os, "write", write)
    LogFile(tmp_path / "log.jsonl").append(LINE)
    assert len(written) == 1
    assert written[0].endswith(b"}\n")
