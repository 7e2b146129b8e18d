"""Kill -9 and resume, bit for bit; replay; export; damaged checkpoints; a full disk; numbers that are not finite."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lpo_ray.training.checkpoint import list_checkpoints
from lpo_ray.training.ledger_audit import audit
from tests.support.live_runs import DIGITS, Run, finish
from tests.support.run_history import History

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


def lpo_ray(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lpo_ray", *arguments], capture_output=True, text=True, timeout=240, check=False
    )


def test_a_resumed_run_is_the_run_that_was_never_killed(history: History) -> None:
    """All steps from the first weights on, of the groups that were recorded, give the resumed run's digests."""
    assert audit(history.folder).violations == ()
    finished = lpo_ray("replay", str(history.folder), "--step", str(history.steps), "--from-start")
    assert finished.returncode == 0, finished.stderr
    said = f"step {history.steps} of {history.folder}, replayed from the start: weights "
    assert finished.stdout.startswith(said)
    assert finished.stdout.endswith(", equal\n")


@pytest.mark.long
def test_a_replay_from_a_checkpoint_notices_a_changed_sample(history: History, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    numbers = [int(path.name[5:]) for path in list_checkpoints(history.folder / "checkpoints")]
    saved = max(number for number in numbers if number < history.steps)
    step = saved + 1
    finished = lpo_ray("replay", str(history.folder), "--step", str(step))
    assert finished.returncode == 0, finished.stderr
    assert f"replayed from step_{saved:06d}" in finished.stdout
    copy = tmp_path / "copy"
    shutil.copytree(history.folder, copy)
    path = copy / "samples" / f"step_{step:06d}.parquet"
    table = pq.read_table(path)
    values = [-3.0, *table["log_target"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("log_target"), "log_target", [values]), path)
    finished = lpo_ray("replay", str(copy), "--step", str(step))
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert f"ReplayDiffers: step {step} of" in finished.stderr
    assert f": step {step} gave weights " in finished.stderr
    path.unlink()
    finished = lpo_ray("replay", str(copy), "--step", str(step))
    assert finished.returncode == 2
    assert f"the samples of step {step} were not recorded" in finished.stderr
    beyond = lpo_ray("replay", str(copy), "--step", str(history.steps + 1)).stderr
    assert f"committed steps: 1 to {history.steps}" in beyond


@pytest.mark.long
def test_steps_since_the_checkpoint_are_computed_again_and_not_sampled_again(tmp_path: Path, tiny_policy: Path) -> None:
    options = (DIGITS, "learner.lr=1e-3", "run.steps=9", "checkpoint.every=4", "run.resume=auto")
    first = Run(tmp_path, tiny_policy, *options)
    first.wait_for_step(7)
    for process in first.descendants():
        process.kill()
    first.process.wait()
    before = (first.folder / "metrics.jsonl").read_text().splitlines()
    output = finish(second := Run(tmp_path, tiny_policy, *options))
    assert second.process.returncode == 0, output
    done = int(re.search(r"computing steps 5 to (\d+) again", output)[1])
    assert done >= 7
    assert f"resumed after step {done}" in output
    after = (second.folder / "metrics.jsonl").read_text().splitlines()
    assert after[:done] == before[:done]  # what was written stays, to the byte
    assert second.steps() == list(range(1, 10))
    books = audit(second.folder)
    assert books.violations == ()
    with sqlite3.connect(second.folder / "ledger.sqlite") as ledger:
        again = ledger.execute("SELECT COUNT(*) FROM attempts WHERE attempt > 0 AND step <= ?", (done,)).fetchone()
    assert again == (0,)
    finished = lpo_ray("replay", str(second.folder), "--step", "9", "--from-start")
    assert finished.returncode == 0, finished.stderr  # and all nine are the steps of one run that was never killed


VLLM = """
import sys
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype="float32", max_model_len=128, enforce_eager=True)
output = llm.generate([{"prompt_token_ids": [22, 15, 14]}], SamplingParams(max_tokens=4, temperature=0))[0]
print("TOKENS", list(output.outputs[0].token_ids))
"""


def test_an_export_loads_in_transformers_and_in_vllm(history: History, tmp_path: Path) -> None:
    out = tmp_path / "policy"
    assert lpo_ray("export", str(history.folder), str(out)).returncode == 0
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"}
    assert "divergence: forward_kl" in (out / "README.md").read_text()
    assert GenerationConfig.from_pretrained(out).eos_token_id == AutoTokenizer.from_pretrained(out).eos_token_id
    model = AutoModelForCausalLM.from_pretrained(out)
    saved = load_file(list_checkpoints(history.folder / "checkpoints")[-1] / "policy" / "model.safetensors")
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in saved.items())
    prompt = torch.tensor([[22, 15, 14]])
    ours = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False)[0, 3:]
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", VLLM, str(out)], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert f"TOKENS {ours.tolist()}" in finished.stdout, finished.stderr[-2000:]


@pytest.mark.long
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(
    history: History, tmp_path: Path, tiny_policy: Path
) -> None:
    shutil.copytree(history.folder, tmp_path / "quickstart")
    newest, before, *_ = list_checkpoints(tmp_path / "quickstart" / "checkpoints")[::-1]
    shard = next((newest / "shards").glob("rank_*.safetensors"))
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size // 2)
    options = (DIGITS, "learner.lr=1e-3", "run.resume=auto", f"run.steps={history.steps + 1}")
    output = finish(run := Run(tmp_path, tiny_policy, *options))
    assert run.process.returncode == 1, output
    assert f"CheckpointDamaged: checkpoint {newest} cannot be restored" in output
    assert f"{shard.relative_to(newest)} has {size // 2} bytes, was written with {size}" in output
    shutil.rmtree(newest)
    output = finish(run := Run(tmp_path, tiny_policy, *options, "learner.world_size=1"))  # it was written by two
    assert run.process.returncode == 0, output
    assert f"resumed after step {int(before.name[5:])}" in output


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """45 MB for checkpoints: one of the tiny policy has 29, so a second does not fit beside it."""
    folder = tmp_path / "quickstart" / "checkpoints"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=45m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.long
def test_a_full_disk_leaves_the_checkpoint_before_it_intact(
    small_disk: Path, tmp_path: Path, tiny_policy: Path
) -> None:
    output = finish(run := Run(tmp_path, tiny_policy, DIGITS, "run.resume=auto", "run.steps=6"))
    assert run.process.returncode == 1, output
    assert f"CheckpointFailed: checkpoint {small_disk / 'step_000006'} could not be written" in output
    assert [path.name for path in small_disk.iterdir()] == ["step_000003"]
    finished = lpo_ray(
        "export", str(tmp_path / "quickstart"), str(tmp_path / "policy")
    )  # holds every file to its digest
    assert finished.returncode == 0, finished.stderr


@pytest.mark.long
def test_numbers_that_are_not_finite_end_the_run_with_the_evidence(tmp_path: Path, tiny_policy: Path) -> None:
    output = finish(
        run := Run(
            tmp_path, tiny_policy, "objective.token_clip.kind=tests.support.e2e_verifiers:not_finite",
            "telemetry.samples_every=0", "learner.max_skipped_updates=3",
        )
    )  # fmt: skip
    assert run.process.returncode == 1, output
    assert "NumbersNotFinite: 3 updates in a row" in output
    evidence = run.folder / "samples" / "step_000002.parquet"
    assert "step 2: loss of train-0000" in output
    assert f"The groups are in {evidence}" in output
    assert evidence.exists()
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped_updates"] for row in rows] == [2, 2]
    assert rows[0]["not_finite"][0].startswith("loss of train-0000")
    assert rows[0]["weights_version"].split(":")[1] == rows[1]["weights_version"].split(":")[1]
    assert json.loads((run.folder / "summary.json").read_text())["groups"]["filtered"] == 16
