"""`lpo-ray evaluate` in one process: what it writes, what it refuses, and that it goes on after kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lpo_ray.cli.evaluate import evaluate_command
from lpo_ray.config.load import load_config, read_layer
from lpo_ray.errors import ConfigError, TooManyLost
from lpo_ray.run.spec import make_spec
from lpo_ray.tools.evaluate.target import requests_of

ROOT = Path(__file__).parents[3]
SETTINGS = (
    "cluster.kind=inprocess", "evaluation.num_prompts=6", "evaluation.samples_per_prompt=4", "sampling.max_tokens=8",
)  # fmt: skip


def heldout(folder: Path) -> str:
    """Six prompts whose answer is a regular expression that about every second text of a few characters has."""
    path = folder / "heldout.jsonl"
    rows = [{"prompt": f"{n}+{n}=", "answer": "(?s).*[0-4(].*", "level": 1 + n % 2} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]


def test_a_model_on_a_file_then_once_more(
    tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    overrides = (*SETTINGS, "task.verifier=regex", f"task.heldout_path={heldout(tmp_path)}")
    requests = requests_of(str(tiny_policy), overrides, task="dataset", out=out)
    evaluate_command(requests, "level", fresh=False, as_json=False)
    shown = capsys.readouterr().out
    for text in ("pass@1 ", "pass@2 ", "pass@4 ", "maj@4 ", "by pass rate", "by level", "truncated", str(out)):
        assert text in shown
    assert "pass@3" not in shown
    found = json.loads((out / "results.json").read_text())
    stored = lines(out)
    assert len(stored) == 7
    assert set(stored[0]) == {"evaluation", "begun"}
    rewards = [line["rewards"] for line in stored[1:]]
    passed = sum(reward >= 1 for row in rewards for reward in row)
    assert 0 < passed < 24
    assert found["avg@4"] == found["pass@1"] == pytest.approx(passed / 24)
    assert found["pass@3"] <= found["pass@4"]
    assert set(found["by"]["level"]) == {"1", "2"}
    assert found["lengths"]["all"]["num_responses"] == 24
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    # all is there: no engine is started, and the numbers are the same
    monkeypatch.setattr("lpo_ray.cli.evaluate.backend_of", None)
    evaluate_command(requests, None, fresh=False, as_json=True)
    again = json.loads(capsys.readouterr().out)
    assert again["pass@1"] == found["pass@1"]
    hotter = requests_of(str(tiny_policy), (*overrides, "evaluation.temperature=0.5"), task="dataset", out=out)
    with pytest.raises(
        ConfigError, match=r"another evaluation: its sampling is .*'temperature': 1.0.*'temperature': 0.5"
    ):
        evaluate_command(hotter, None, fresh=False, as_json=True)
    with pytest.raises(
        ConfigError, match="--by is 'size', which no prompt has; expected a column of the data, here le"
    ):
        evaluate_command(requests, "size", fresh=False, as_json=True)


def test_conversations_whose_environment_begins_them_and_once_more(
    tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they begin with is not the prompt of the data, by which a result is known."""
    out = tmp_path / "out"
    overrides = (
        *SETTINGS, "task.environment=tests.support.e2e_environments:Begun", "sampling.max_turns=3",
        "evaluation.num_prompts=3", "evaluation.pass_reward=0.1",
    )  # fmt: skip
    requests = requests_of(str(tiny_policy), overrides, task="countdown", out=out)
    evaluate_command(requests, None, fresh=False, as_json=False)
    shown = capsys.readouterr().out
    for text in ("turns", "solved in turn 1", "solved in turn 3", "pass@4"):
        assert text in shown
    found = json.loads((out / "results.json").read_text())
    assert 1 < found["turns"] <= 3
    assert 0 < found["pass@1"] < 1, lines(out)
    assert sum(found[f"solved_in_turn_{turn}"] for turn in (1, 2, 3)) == pytest.approx(found["pass@1"])
    monkeypatch.setattr("lpo_ray.cli.evaluate.backend_of", None)
    evaluate_command(requests, None, fresh=False, as_json=True)
    assert json.loads(capsys.readouterr().out)["turns"] == found["turns"]
    shorter = requests_of(str(tiny_policy), (*overrides, "sampling.max_turns=2"), task="countdown", out=out)
    with pytest.raises(ConfigError, match=r"its limits is .*'max_turns': 3.*'max_turns': 2"):
        evaluate_command(shorter, None, fresh=False, as_json=True)


def test_a_suite_shares_its_engines(tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "two.yaml"
    suite.write_text(
        "all: {evaluation: {temperature: 0.6, num_prompts: 2}}\n"
        "tasks:\n"
        "  numbers: {task: {name: countdown}, evaluation: {samples_per_prompt: 2}}\n"
        f"  file: {{task: {{name: dataset, verifier: regex, heldout_path: {heldout(tmp_path)}}},"
        " evaluation: {samples_per_prompt: 3}}\n"
    )
    overrides = ("cluster.kind=inprocess", "sampling.max_tokens=8")
    requests = requests_of(str(tiny_policy), overrides, suite=suite, out=tmp_path / "out")
    assert [request.config.evaluation.temperature for request in requests] == [0.6, 0.6]
    evaluate_command(requests, None, fresh=False, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "out" / "results.json").read_text())
    assert {name: one["samples_per_prompt"] for name, one in found.items()} == {"numbers": 2, "file": 3}
    assert len(lines(tmp_path / "out" / "file")) == 3
    evaluate_command(requests, None, fresh=False, as_json=False)
    assert "avg@n (= pass@1)" in capsys.readouterr().out


def test_the_papers_suite_is_well_formed(tiny_policy: Path) -> None:
    requests = requests_of(
        str(tiny_policy), ["sampling.max_tokens=512"], suite=ROOT / "configs" / "suites" / "math.yaml"
    )
    sizes = {request.name: request.config.evaluation.samples_per_prompt for request in requests}
    assert sizes == {"aime24": 32, "aime25": 32, "amc23": 32, "minerva": 4, "math500": 1, "olympiadbench": 1}
    assert {request.config.evaluation.temperature for request in requests} == {0.6}
    assert {request.config.task.name for request in requests} == {"math"}


def refused(*arguments: str, **options: object) -> str:
    with pytest.raises(ConfigError) as error:
        requests_of(arguments[0], arguments[1:], **options)
    return str(error.value)


def test_what_a_target_cannot_be(tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(tiny_policy)
    assert "nothing says what to evaluate it on; expected --task NAME" in refused(model)
    assert "is not there; expected a configuration" in refused("nowhere")
    assert "neither config.yaml nor config.json" in refused(str(tmp_path))
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("run: {name: r}")
    monkeypatch.chdir(tmp_path)  # "runs/frist" looks like ORGANISATION/NAME
    found = refused("runs/frist", task="countdown")
    assert found.startswith("runs/frist is not there")
    assert found.endswith("the runs in runs are first, second")
    assert "is no run's folder" in refused(model, task="countdown", step=3)
    assert "has a configuration of its own" in refused(
        str(ROOT / "configs" / "quickstart.yaml"), config=ROOT / "configs" / "math.yaml"
    )
    assert "expected one of both" in refused(model, task="countdown", suite=ROOT / "configs" / "suites" / "math.yaml")
    (tmp_path / "config.yaml").write_text("run: {name: r}")
    assert "has no checkpoint" in refused(str(tmp_path))
    bad = tmp_path / "bad.yaml"
    for text, why in (
        ("tasks: {}", "expected 'tasks'"),
        ("tasks: {a: {model: {path: x}}}", "a has model; expected task and evaluation only"),
        ("tasks: {../a: {}}", "is named '../a'"),
        ("task: {a: {}}", "has task; expected 'tasks'"),
    ):
        bad.write_text(text)
        assert why in refused(model, suite=bad)
    bad.write_text("tasks: {a: {task: {nam: countdown}}}")
    assert "unknown key 'task.nam'; did you mean task.name?" in refused(model, suite=bad)


def test_without_training_data_nothing_is_trained(tiny_policy: Path, tmp_path: Path) -> None:
    overrides = ["task.path=null", f"task.heldout_path={heldout(tmp_path)}", f"model.path={tiny_policy}"]
    config = load_config(ROOT / "configs" / "math.yaml", overrides)
    with pytest.raises(ConfigError, match=r"task\.path is null with task.heldout_path="):
        make_spec(config)
    assert len(make_spec(config, for_training=False).checked.heldout(6)) == 6


def picky(response: str, row: dict[str, object]) -> float | None:
    return None if row["level"] == 2 else 1.0


def test_a_lost_prompt_is_named_and_tried_again(
    tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ("task.verifier=tests.tools.evaluate.test_evaluate:picky", f"task.heldout_path={heldout(tmp_path)}")
    requests = requests_of(str(tiny_policy), (*SETTINGS, *task), task="dataset", out=tmp_path / "out")
    for _ in range(2):
        evaluate_command(requests, None, fresh=False, as_json=False)
        shown = capsys.readouterr().out
        assert "3 prompts were lost and are in no number above" in shown
        assert "heldout-00000001: response 0 stayed unscored: the verifier returned None" in shown
        found = json.loads((tmp_path / "out" / "results.json").read_text())
        assert (found["num_prompts"], found["lost"], found["avg@4"]) == (3, 3, 1.0)
        assert list(found["lost_prompts"]) == [f"heldout-{number:08d}" for number in (1, 3, 5)]
    none = requests_of(
        str(tiny_policy), (*SETTINGS, *task[1:], "task.verifier=tests.verifiers.test_verdict:raises"), task="dataset",
        out=tmp_path / "none",
    )  # fmt: skip
    with pytest.raises(TooManyLost, match="all 6 evaluation prompts were lost 3 times"):
        evaluate_command(none, None, fresh=False, as_json=False)


@pytest.mark.slow
def test_it_goes_on_after_kill_9(tiny_policy: Path, tmp_path: Path) -> None:
    settings = (*SETTINGS, "evaluation.num_prompts=16", "evaluation.samples_per_prompt=8", "sampling.max_tokens=64")

    def command(out: Path) -> list[str]:
        return [sys.executable, "-m", "lpo_ray", "evaluate", str(tiny_policy), "--task", "countdown", *settings,
                "--out", str(out), "--json"]  # fmt: skip

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command(killed), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    path = killed / "evaluation.jsonl"
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = path.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    num_kept = kept.count(b"\n") - 1
    assert 3 <= num_kept < 16
    with path.open("ab") as file:
        file.write(b'{"prompt_id": "heldout-000')  # as a power cut would leave it
    again = subprocess.run(command(killed), cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert path.read_bytes().startswith(kept)
    assert len(lines(killed)) == 17
    undisturbed = subprocess.run(command(whole), cwd=ROOT, capture_output=True, text=True, check=False)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert json.loads(again.stdout) == json.loads(undisturbed.stdout)


def test_layers_say_where_they_are_from() -> None:
    source, sections = read_layer(ROOT / "configs" / "math.yaml")
    assert source.endswith("configs/math.yaml")
    assert sections["run"]["name"] == "math"
