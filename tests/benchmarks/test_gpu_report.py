"""The report of a machine: parts that fail or hang are said to, the others go on, and the page says what it is of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.benchmarks import gpu_report
from tests.benchmarks.gpu_report import PARTS, Failed, Outcome, page, pass_rates, report, run_within, trained_flops
from tests.benchmarks.smollm2 import random_smollm2
from tests.support.telemetry import summary_json

ABOUT = {"date": "2026-11-30", "device": "NVIDIA H100 80GB HBM3", "cores": 2}


def test_a_part_that_is_late_is_ended_with_all_below_it(tmp_path: Path) -> None:
    child = tmp_path / "child"
    script = (
        "import pathlib, subprocess, sys, time; print('begun', flush=True);"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True);"
        f"pathlib.Path({str(child)!r}).write_text(str(p.pid)); time.sleep(600)"
    )
    why = run_within([sys.executable, "-c", script], 2.0, tmp_path / "output.txt")
    assert why == "it was not done within its 2 s: begun"
    pid = int(child.read_text())  # where nobody reaps it, it stays as a zombie
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("print('a\\nb\\nc\\nd'); raise SystemExit(3)", "its process ended with 3: b | c | d"),
        ("import os; os.kill(os.getpid(), 9)", "its process ended with -9: "),
        ("pass", ""),
    ],
)
def test_how_a_part_ended_is_said(tmp_path: Path, script: str, why: str) -> None:
    assert run_within([sys.executable, "-c", script], 60.0, tmp_path / "output.txt") == why


def test_others_go_on_when_one_fails_and_what_is_done_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = {
        "tests": Outcome("tests marked gpu", "left out", why="they need a GPU"),
        "quickstart": Outcome("the quickstart, cut short", "failed", 3.0, 60.0, "a | b\nc"),
        "model": Outcome("a model", "ok", 5.0, 60.0, "", {"MFU": 0.41234567, "parameters": 134515008, "peak": "989"}),
    }
    monkeypatch.setattr(gpu_report, "run_part", lambda name, *_: outcomes[name])
    assert not report(tmp_path, list(outcomes), False, 1.0)
    content = json.loads((tmp_path / "report.json").read_text())
    assert {name: part["status"] for name, part in content["parts"].items()} == {
        "tests": "left out", "quickstart": "failed", "model": "ok"
    }  # fmt: skip
    text = (tmp_path / "report.md").read_text()
    assert "| tests marked gpu | **left out** |  | they need a GPU |" in text
    assert "| the quickstart, cut short | **failed** | 3 of 60 | a \\| b c |" in text
    assert "| MFU | 0.4123 |" in text
    assert "| parameters | 134,515,008 |" in text
    assert not report(tmp_path, ["quickstart"], False, 1.0)
    assert report(tmp_path, ["tests", "model"], False, 1.0)


def test_a_page_says_whether_it_is_of_a_gpu() -> None:
    gpu = page({"accelerator": "cuda", "machine": ABOUT, "parts": {}})
    cpu = page({"accelerator": "cpu", "machine": ABOUT | {"device": "CPU only"}, "parts": {}})
    assert gpu.startswith("# Report of a machine: NVIDIA H100 80GB HBM3\n")
    assert "No figure on this page is from a GPU" in cpu
    assert "No figure on this page is from a GPU" not in gpu
    assert "| date | 2026-11-30 |" in cpu


def test_pass_rates_are_the_summarys() -> None:
    assert pass_rates(summary_json()) == {"pass@1 before": 0.2, "pass@1 before, 95 %": "0.100 to 0.300"}


def test_flops_of_a_forward_pass() -> None:
    model = SimpleNamespace(num_layers=2, num_heads=3, head_dim=5, body=100, embedding=40)
    assert trained_flops(model, tokens=7, length=11) == 7 * (2 * 140 + 2 * 2 * 3 * 5 * 11)


def test_the_model_is_smollm2s(tmp_path: Path) -> None:
    from lpo_ray.policy.tokenizer import Tokenizer
    from lpo_ray.tools.plan.architecture import read_architecture

    path = random_smollm2(tmp_path)
    assert read_architecture(str(path)).parameters == 134_515_008
    tokenizer = Tokenizer.load(str(path))
    assert len(tokenizer) == 49152
    assert tokenizer.decode(tokenizer.encode_many(["a 1"])[0]) == "a 1"


@pytest.mark.parametrize("on_gpu", [True, False])
def test_all_parts_fit_into_a_quarter_of_an_hour(on_gpu: bool) -> None:
    assert sum(part.budget(on_gpu) for part in PARTS.values()) <= 15 * 60


def test_a_gpu_test_that_skips_itself_fails_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        '<testsuites><testsuite tests="2" failures="0" errors="0" skipped="1"><testcase name="a"/><testcase name="b">'
        '<skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: (tmp_path / "junit.xml").write_text(text))
    with pytest.raises(Failed, match=r"'skipped': 1.*: b"):
        gpu_report.gpu_tests(tmp_path, True, 1.0)


@pytest.mark.long
@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_report_of_this_machine(tmp_path: Path) -> None:
    command = [sys.executable, gpu_report.__file__, str(tmp_path), "--scale", "0.25"]
    done = subprocess.run(command, cwd=gpu_report.ROOT, capture_output=True, text=True, check=False)
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items() if name != "tests"} == {
        "quickstart": "ok", "model": "ok", "killed": "ok"
    }, done.stdout  # fmt: skip
    model = parts["model"]["figures"]
    assert model["publish_difference_typical"] <= model["publish_difference_typical_limit"]
    assert model["tokens_per_second_sampled"] > 0
    assert model["tokens_per_second_trained"] > 0
    assert parts["killed"]["figures"]["books"] == "balance"
