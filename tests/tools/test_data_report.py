"""``lpo-ray data`` as a user meets it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lpo_ray.cli.data import data_command
from lpo_ray.config import load_config
from lpo_ray.errors import DataError
from lpo_ray.run.spec import data_spec
from lpo_ray.tasks.base_policy import character_tokenizer
from lpo_ray.tools.data_report import read_data, render, visible
from tests.support.commands import QUICKSTART, lpo_ray
from tests.support.dataset_files import VERL_GSM8K, chat_tokenizer, write_jsonl

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\u202e [bold]not markup[/bold] \r\x00\x9b1A"


def shown(tmp_path: Path, rows: list, *overrides: str, tokenizer: object = None) -> tuple[str, dict]:
    """On a terminal, and as JSON."""
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    base = ["task.name=dataset", "task.verifier=boxed", f"task.path={path}", "evaluation.num_prompts=0"]
    spec = data_spec(load_config(Path(QUICKSTART), [*base, *overrides]))
    report = read_data(spec, tokenizer or character_tokenizer())
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=True, color_system=None).print(render(report))
    return out.getvalue(), json.loads(json.dumps(report.to_json()))


def test_ten_prompts_of_a_generator_and_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    data_command(load_config(Path(QUICKSTART), []), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert len(found["prompts"]) == 10
    assert found["prompts"][0]["prompt_id"] == "train-00000000"
    assert len(found["prompts"][0]["text"]) == found["prompts"][0]["tokens"]
    assert found["verifier"] == "countdown"
    assert (found["statistics"]["train"]["rows"], found["statistics"]["train"]["sampled"]) == (1000, True)
    assert found["statistics"]["heldout"]["rows"] == 256


def test_a_bad_file_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", [{"prompt": HOSTILE}])
    overrides = ("task.name=dataset", "task.verifier=boxed", f"task.path={path}", "evaluation.num_prompts=0")
    finished = lpo_ray("data", QUICKSTART, *overrides)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"DataError: {path}, row 1 has no answer")
    assert finished.stderr.count("\n") == 1
    assert "\x1b" not in finished.stderr


def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}=", "answer": "" if n in (3, 17) else str(n)} for n in range(30)]
    text, found = shown(tmp_path, rows)
    assert found["statistics"]["train"]["unusable"] == 2
    assert list(found["statistics"]["train"]["faults"]) == ["4", "18"]
    assert "train, row 18: answer: boxed cannot read it: the answer of a mathematics" in " ".join(text.split())
    assert "unusable" in text


def test_hostile_rows_cannot_reach_the_terminal(tmp_path: Path) -> None:
    rows = [
        {"prompt": HOSTILE, "answer": HOSTILE, HOSTILE: HOSTILE},
        {"prompt": "x" * 100_000, "answer": "y" * 10_000},
    ]
    text, found = shown(tmp_path, rows, "sampling.max_tokens=8")
    assert not any(character in text for character in "\x1b\x07\x00\r\x9b\u202e")
    assert "[bold]not markup[/bold]" in text.replace("\n", "")
    assert len(text) < 30_000
    assert found["statistics"]["train"]["left_out"] == 1
    assert found["prompts"][0]["answer"] == HOSTILE


def test_special_tokens_messages_and_columns_are_shown(tmp_path: Path) -> None:
    row = {**VERL_GSM8K, "prompt": [{"role": "user", "content": "2 + 2<eos>?"}]}
    text, found = shown(tmp_path, [row], tokenizer=chat_tokenizer())
    assert "[user]2 + 2<eos>?" in text
    assert found["prompts"][0]["columns"][0] == "data_source"
    assert "columns  data_source" in text


def test_the_terminals_version_fits_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    data_command(load_config(Path(QUICKSTART), []), as_json=False)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("tokens ─") == 10
    assert "first 1,000" in out


def test_numbers_of_a_file(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * n, "answer": "1"} for n in range(1, 101)]
    heldout = write_jsonl(tmp_path / "heldout.jsonl", [{"prompt": "X" * 7, "answer": "1"}])
    limited = (f"task.heldout_path={heldout}", "sampling.max_tokens=1968")  # 2048 positions less 1968 are 80
    text, found = shown(tmp_path, [*rows, rows[4]], *limited)
    train = found["statistics"]["train"]
    assert (train["rows"], train["left_out"], train["duplicates"]) == (101, 20, 1)
    assert train["tokens"] == {"min": 1, "50 %": 50, "90 %": 90, "99 %": 99, "max": 100}
    assert found["statistics"]["heldout"]["tokens"]["max"] == 7
    assert found["alike"] == 1
    assert "held-out prompts in training: 0 equal, 1 but for case and white space" in text
    assert "left out: prompts over 80 of them" in text
    with pytest.raises(DataError, match="must not overlap"):
        shown(tmp_path, [{"prompt": "X" * 7, "answer": "1"}], *limited)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ntext", "plain\ntext"),
        ("a\tb\r\n", "a\\tb\\r\n"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202eabc\u200b", "\\u202eabc\\u200b"),
        ("é 数 \U0001f600", "é 数 \U0001f600"),
        ("x" * 30, "xxxxx [... 20 characters ...] xxxxx"),
    ],
)
def test_what_is_visible(text: str, expected: str) -> None:
    assert visible(text, 10 if len(text) == 30 else 100) == expected
