"""What libraries log and warn of reaches the run's log with their names, and no terminal."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator

import pytest

from lpo_ray.telemetry.captured_log import CapturedLog
from lpo_ray.telemetry.log import LogLine


@pytest.fixture
def library() -> Iterator[logging.Logger]:
    """A logger as DeepSpeed makes its own: it prints to standard output, and hands nothing on."""
    logger, handler = logging.getLogger("SomeSpeed"), logging.StreamHandler(sys.stdout)
    logger.propagate = False
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)
    logger.propagate = True


def test_lines_are_held_until_there_is_a_log_and_then_written_at_once(
    library: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[LogLine] = []
    with CapturedLog() as captured:
        library.warning("no %s", "accelerator")
        captured.write_to(written.append)
        library.getChild("part").error("broken")
        warnings.warn("old", stacklevel=1)
        logging.getLogger("lpo_ray.tasks").warning("a row is left out")
    assert [(line.level, line.source, line.role) for line in written] == [
        ("warning", "SomeSpeed", "driver"),
        ("error", "SomeSpeed.part", "driver"),
        ("warning", "py.warnings", "driver"),
        ("warning", "", "driver"),
    ]
    assert [line.text for line in written if line.source != "py.warnings"] == [
        "no accelerator", "broken", "a row is left out",
    ]  # fmt: skip
    assert capsys.readouterr() == ("", "")


def test_without_a_log_only_what_a_user_should_see_is_printed_at_the_end(
    library: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    with CapturedLog():
        library.warning("no accelerator")
        library.error("broken")
        logging.getLogger("lpo_ray.tasks").warning("a row is left out")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(" driver - - ")[2] for line in err.splitlines()] == [
        "SomeSpeed: broken", "a row is left out",
    ]  # fmt: skip


def test_a_command_that_fails_before_it_has_a_log_prints_everything(
    library: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyError), CapturedLog():
        library.warning("no accelerator")
        raise KeyError
    assert "SomeSpeed: no accelerator" in capsys.readouterr().err


def test_afterwards_libraries_print_as_before(library: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    with CapturedLog() as captured:
        captured.write_to(lambda line: None)
    library.handlers[0].setStream(sys.stdout)  # type: ignore[attr-defined]
    library.warning("no accelerator")
    assert capsys.readouterr().out == "no accelerator\n"
