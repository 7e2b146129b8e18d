"""Tasks on the real stack while their verifier processes are killed and hang: every trained reward is a real one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from lpo_ray.training.ledger_audit import audit
from lpo_ray.verifiers.calling.call import verify_sum
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.sandbox.limits import Limits
from tests.support.processes import marked

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(500)]
QUICKSTART = str(Path(__file__).parent.parent.parent / "configs" / "quickstart.yaml")
STEPS = 4
SMALL = (
    f"run.steps={STEPS}", "pipeline.groups_per_step=6", "sampling.group_size=4", "evaluation.num_prompts=0",
    "telemetry.progress=quiet", "verifier.deadline_seconds=4", "sampling.max_tokens=24", "learner.world_size=1",
    "learner.attention=auto", "pipeline.max_attempts=20",
)  # fmt: skip
CODE = [
    {"prompt": f"def f(x): return x+{n}", "answer": json.dumps({"tests": [f"assert f(1) == {n + 1}"]})}
    for n in range(40)
]


def train(folder: Path, policy: Path, *overrides: str) -> list[dict]:
    """A run while one verifier process after another is killed; its samples."""
    mark = f"LPO_RAY_VERIFIERS={random.randbytes(8).hex()}"
    name, _, value = mark.partition("=")
    command = [sys.executable, "-m", "lpo_ray", "train", QUICKSTART, f"run.dir={folder}", f"model.path={policy}"]
    environment = {**dict(psutil.Process().environ()), name: value}
    process = subprocess.Popen([*command, *SMALL, *overrides], env=environment)
    killed = _kill_verifiers(process, mark)
    assert process.wait(400) == 0
    assert killed.is_set()
    run = folder / "quickstart"
    assert audit(run).violations == ()
    files = sorted((run / "samples").glob("*.parquet"))
    assert len(files) == STEPS
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def _kill_verifiers(run: subprocess.Popen[bytes], mark: str) -> threading.Event:
    """SIGKILL of a process of the verifiers' pool every second or so, in the background; set once one was killed."""
    killed = threading.Event()

    def kill() -> None:
        while run.poll() is None:
            time.sleep(random.uniform(0.3, 1.5))
            for process in marked(mark):
                try:
                    if "ray::VerifierService" in " ".join(process.cmdline()):
                        below = [p for p in process.children(recursive=True) if not p.children()]
                        random.choice(below).kill()
                        killed.set()
                except (psutil.Error, IndexError):
                    continue

    threading.Thread(target=kill, daemon=True).start()
    return killed


def check_rewards(rows: list[dict]) -> None:
    """Every reward is what its verifier says of the text, now and here."""
    for row in rows:
        case = Case(row["prompt"], row["response"], row["answer"], json.loads(row["row"]), sandbox=Limits(seconds=5))
        [verdict] = verify_sum(row["verifier"].replace("now_and_then", "digits"), [case])
        assert verdict.reward == pytest.approx(row["reward"], abs=1e-6), row
    assert len({row["reward"] for row in rows}) > 1


@pytest.mark.long
def test_reasoning_gym(tmp_path: Path, tiny_policy: Path) -> None:
    sum_of = "task.verifier=reasoning_gym + 0.5*tests.support.e2e_verifiers:now_and_then"
    check_rewards(train(tmp_path, tiny_policy, "task.name=reasoning_gym:gcd", sum_of))


def test_unit_tests(tmp_path: Path, tiny_policy: Path) -> None:
    data = tmp_path / "code.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in CODE))
    sum_of = "task.verifier=unit_tests + 0.5*tests.support.e2e_verifiers:now_and_then"
    check_rewards(train(tmp_path, tiny_policy, "task.name=code", f"task.path={data}", sum_of))


@pytest.mark.long
def test_a_reward_service_that_goes_away_and_comes_back(tmp_path: Path, tiny_policy: Path) -> None:
    server = Path(__file__).parent.parent.parent / "configs" / "rewards" / "openrlhf_server.py"
    served = subprocess.Popen([sys.executable, str(server)])

    def restart() -> None:
        nonlocal served
        time.sleep(25)
        served.kill()
        time.sleep(4)
        served = subprocess.Popen([sys.executable, str(server)])

    threading.Thread(target=restart, daemon=True).start()
    try:
        rows = train(
            tmp_path, tiny_policy, "verifier.http.batched=true", "verifier.http.reward=rewards",
            "verifier.http.request={query: prompt+response, prompts: prompt, labels: answer}",
            "task.verifier=http://127.0.0.1:5000/get_reward + tests.support.e2e_verifiers:digits",
        )  # fmt: skip
    finally:
        served.kill()
    for row in rows:
        target = str(json.loads(row["answer"])["target"])
        [digits] = verify_sum("tests.support.e2e_verifiers:digits", [Case("", row["response"], "")])
        assert row["reward"] == pytest.approx((target in row["response"]) + (digits.reward or 0), abs=1e-6)


@pytest.mark.long
def test_reward_functions_of_other_systems_train(tmp_path: Path, tiny_policy: Path) -> None:
    styles = ("configs/rewards/trl_style.py:reward_func", "configs/rewards/verl_style.py:compute_score")
    sum_of = " + ".join((*styles, "0.01*tests.support.e2e_verifiers:digits"))
    check_rewards(train(tmp_path, tiny_policy, f"task.verifier={sum_of}"))
