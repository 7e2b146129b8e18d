"""`lpo-ray trace`: one prompt's history, of a real run's folder and of ledgers in every state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from lpo_ray.cli.app import cli
from lpo_ray.errors import ConfigError
from lpo_ray.records import Prompt, PromptGroup, Response, ScoredGroup, WeightsVersion
from lpo_ray.tools.trace import render, trace
from lpo_ray.training.ledger import Ledger
from tests.support.builders import make_target
from tests.support.recorded_runs import write_step
from tests.support.segments import mixed_group


def scored(prompt_id: str, attempt: int, rewards: tuple[float, ...] = (1.0, 0.0)) -> ScoredGroup:
    def response(length: int) -> Response:
        return Response(np.arange(length), np.zeros(length, dtype=np.float32), np.full(length, 3), "stop")

    prompt = Prompt(prompt_id, np.arange(4), "[red]42[/red]", "exact")
    group = PromptGroup(prompt, attempt, tuple(response(2 + k) for k in range(len(rewards))))
    return ScoredGroup(group, np.array(rewards, dtype=np.float32))


def said(folder: Path, prompt: str, width: int = 160) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(trace(folder, prompt)))
    return console.export_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One prompt that was lost, stale, then trained and reused; one of each other end."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for index, name in enumerate(("a", "b", "c", "d")):
        ledger.issue(index, name, 60)
    ledger.lost(("a", 0), "worker rollout-0 died [bold]token=hf_abcdefghijklmnopqrstuvwxyz012345[/bold]")
    ledger.issue(0, "a", 60)
    ledger.sampled(("a", 1))
    ledger.scored(scored("a", 1))
    ledger.stale(("a", 1), "3 steps old, pipeline.max_staleness is 1")
    ledger.issue(0, "a", 60)
    ledger.sampled(("a", 2))
    ledger.scored(scored("a", 2))
    with ledger.step(WeightsVersion(1, "d1"), [("a", 2)]):
        pass
    with ledger.step(WeightsVersion(2, "d2"), [], reused=[("a", 2)]):
        pass
    ledger.filtered(("b", 0), "all rewards are equal")
    ledger.sampled(("c", 0))
    ledger.close()
    return tmp_path


def test_every_attempt_is_told_with_its_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz012345")
    text = said(folder, "a")
    assert "attempt 0: lost, not completed; the prompt is issued again: worker rollout-0 died" in text
    assert "hf_abcdefghijklmnopqrstuvwxyz012345" not in text
    assert "attempt 1: stale" in text and "3 steps old, pipeline.max_staleness is 1" in text
    assert "attempt 2: trained by step 1, and again by 2" in text
    assert "answer: [red]42[/red]" in text, "markup of a run is text"


def test_what_the_ledger_still_holds_stands_in_for_samples_that_were_not_recorded(folder: Path) -> None:
    responses = trace(folder, "a")[0].attempts[2].responses
    assert [(response.reward, response.tokens, response.versions) for response in responses] == [
        (1.0, 2, (3, 3)), (0.0, 3, (3, 3)),
    ]  # fmt: skip
    assert "not recorded" in said(folder, "a")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("b", "filtered, left out on purpose; the prompt is not issued again: all rewards are equal"),
        ("c", "sampled, waiting for its verdicts"),
        ("d", "issued, at an engine, or waiting for one"),
        ("3", "issued, at an engine, or waiting for one"),
    ],
)
def test_each_state_says_what_it_means(folder: Path, prompt: str, expected: str) -> None:
    assert expected in said(folder, prompt)


@pytest.mark.parametrize("prompt", ["e", "4", "-1", "", "9" * 40, "' OR 1=1 --"])
def test_an_unknown_prompt_is_an_error_that_names_some(folder: Path, prompt: str) -> None:
    with pytest.raises(ConfigError, match="the first ids are a, b, c, d"):
        trace(folder, prompt)


def test_a_number_is_a_row_where_a_data_set_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for index, row in enumerate((17, 9, 1, 17)):
        ledger.issue(index, f"train-{index:08d}-row-{row}", 60)
    ledger.close()
    assert [(one.prompt_id, one.data_index) for one in trace(tmp_path, "17")] == [
        ("train-00000000-row-17", 0), ("train-00000003-row-17", 3),
    ]  # fmt: skip
    assert [one.data_index for one in trace(tmp_path, "1")] == [2]
    assert [one.data_index for one in trace(tmp_path, "train-00000001-row-9")] == [1]
    with pytest.raises(ConfigError, match="never issued a prompt '7'"):
        trace(tmp_path, "7")


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no ledger"):
        trace(tmp_path, "a")
    Ledger(tmp_path / "ledger.sqlite").close()
    with pytest.raises(ConfigError, match="nothing was issued yet"):
        trace(tmp_path, "a")


def test_the_command_prints_it(folder: Path) -> None:
    found = CliRunner().invoke(cli, ["trace", str(folder), "b"])
    assert found.exit_code == 0 and "filtered, left out on purpose" in found.output


def test_a_conversation_is_told_with_its_turns_and_segments(tmp_path: Path) -> None:
    """From the samples of the step that trained it, and from the ledger while it waits."""
    group = mixed_group(0)
    target = make_target(0, [len(response.token_ids) for response in group.responses])
    target = replace(target, scored=replace(target.scored, group=group))
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.issue(0, group.prompt.prompt_id, 60)
    ledger.sampled(group.key)
    ledger.scored(target.scored)
    waiting = trace(tmp_path, group.prompt.prompt_id)[0].attempts[0].responses
    with ledger.step(WeightsVersion(1, "d1"), [group.key]):
        pass
    ledger.close()
    write_step(tmp_path, 1, [target])
    trained = trace(tmp_path, group.prompt.prompt_id)[0].attempts[0].responses
    for told in (waiting, trained):
        assert [response.turns for response in told] == [(), (2, 3, 1), (3, 2, 4), (2, 3)]
        assert [response.tokens for response in told] == [3, 6, 9, 5]
        assert [response.ended for response in told] == ["", "turns", "turns", "tokens"]
    text = said(tmp_path, group.prompt.prompt_id, width=400)
    assert "[segment 2, behind 6 tokens: compaction]" in text
    assert "3 turns of 2, 3, 1 tokens, ended by turns" in text
