"""docker/ on a real engine: the CPU image is built, run, stopped and resumed; compose's cluster trains in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from tests.launch import roots
from tests.launch.dockerfile import parse_dockerfile
from tests.support.docker_engine import Docker, docker
from tests.support.namespaces import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]
"""each wait has its own limit, on silence"""
ROOT = Path(__file__).parents[2]
IMAGE = "lpo-ray:cpu"
FREE_GIB = 15
SMALL = (
    "pipeline.groups_per_step=8", "sampling.group_size=4", "evaluation.num_prompts=0", "learner.world_size=1",
    "rollout.kv_cache_gib=0.2", "verifier.num_processes=1", "telemetry.progress=plain",
)  # fmt: skip
ROLES = [f"{section}.labels={{lpo-ray/role: {section}}}" for section in ("learner", "rollout", "verifier")]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="docker-", dir="/tmp"))  # short: Docker's sockets lie in it
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Docker]:
    if (reason := roots.missing()) is not None:
        pytest.skip(reason)
    if shutil.disk_usage(folder).free < FREE_GIB * 2**30:
        pytest.skip(f"needs {FREE_GIB} GiB of disk in {folder}")
    with docker(folder) as found:
        if isinstance(found, str):
            pytest.skip(found)
        yield found


@pytest.fixture(scope="module")
def image(engine: Docker, folder: Path, tiny_policy: Path) -> Docker:
    """The engine with the image of docker/Dockerfile.cpu, and a volume "policy" with a base policy.

    There is no registry here: its base is a Debian of this machine's mirror, with this machine's settings of pip.
    """
    (suite,) = re.findall(r"slim-(\w+)", parse_dockerfile(ROOT / "docker" / "Dockerfile.cpu")[0].base)
    base = folder / "base"
    if (reason := roots.make_root(base, suite)) is not None:
        pytest.skip(reason)
    roots.copy_settings(base)
    tar = subprocess.run(["tar", "-C", base, "-cf", folder / "base.tar", "."], capture_output=True, check=False)
    assert tar.returncode == 0, tar.stderr
    engine.done("import", folder / "base.tar", "local/python:3.11", timeout=200)
    shutil.rmtree(base)
    (folder / "base.tar").unlink()
    started = time.monotonic()
    engine.done(
        "build", "--network=host", "--progress=plain", "--build-arg=BASE=local/python:3.11", f"--tag={IMAGE}",
        f"--file={ROOT}/docker/Dockerfile.cpu", ROOT, timeout=900,
    )  # fmt: skip
    print(f"built in {time.monotonic() - started:.0f} s")  # noqa: T201
    engine.done("network", "create", "test")
    shutil.copytree(tiny_policy, folder / "policy")
    subprocess.run(["chmod", "-R", "a+rX", folder / "policy"], check=True)
    return engine


def once(engine: Docker, folder: Path, *command: str, options: tuple[str, ...] = ()) -> CompletedProcess[str]:
    """What a command in a container of its own says."""
    return engine("run", "--rm", *as_documented(folder), *options, IMAGE, *command, timeout=300)


def as_documented(folder: Path) -> list[str]:
    """The options of docker/Dockerfile.cpu's `docker run`, a base policy at /policy, and the network."""
    volumes = ["--volume=lpo-runs:/runs", f"--volume={folder}/policy:/policy:ro"]
    return ["--shm-size=2g", "--stop-timeout=300", "--env=LPO_RAY_CACHE=/runs/.cache", "--network=test", *volumes]


def train(steps: int, *more: str) -> list[str]:
    model = "model.path=/policy"
    return ["lpo-ray", "train", "configs/quickstart.yaml", model, f"run.steps={steps}", *SMALL, *more]


def test_a_run_in_a_container_is_stopped_with_a_checkpoint_and_goes_on(image: Docker, folder: Path) -> None:
    name = "--name=training"
    trained = [*train(5000, "checkpoint.every=1000")]
    image.done("run", "--detach", name, *as_documented(folder), IMAGE, *trained)

    def steps() -> int:
        counted = image("exec", "training", "sh", "-c", "wc -l < /runs/quickstart/metrics.jsonl").stdout
        return int(counted) if counted.strip().isdigit() else 0

    try:

        def begun() -> bool:
            return steps() >= 3 or not image.done("ps", "--quiet")

        wait_until("three steps", begun, 200, lambda: image("logs", "training").stdout)
        started = time.monotonic()
        image.done("stop", "training", timeout=320)
        seconds = time.monotonic() - started
        said = image.done("logs", "training")
        assert image.done("inspect", "--format={{.State.ExitCode}}", "training").strip() == "143", said[-3000:]
    finally:
        image("rm", "--force", "training")
    (step,) = re.findall(r"stopped by signal 15 after step (\d+)", said)
    print(f"stopped within {seconds:.1f} s")  # noqa: T201
    resumed = once(image, folder, *train(int(step) + 1, "run.resume=auto"))
    assert resumed.returncode == 0, resumed.stdout[-3000:]
    assert f"resumed after step {step}" in resumed.stdout


@pytest.mark.parametrize(
    ("options", "failing"),
    [
        ((), ""),
        (("--read-only", "--tmpfs=/tmp:exec,mode=1777"), ""),
        # the volume belongs to user 1000
        (("--user=12345",), "2 checks failed: disk: run folder (HOST), disk: cache folder (HOST)"),
    ],
    ids=["user-1000", "read-only", "any-user"],
)
def test_doctor_passes_in_the_image_or_says_why_not(
    image: Docker, folder: Path, options: tuple[str, ...], failing: str
) -> None:
    examined = once(image, folder, "lpo-ray", "doctor", "--quick", options=("--hostname=HOST", *options))
    assert (examined.returncode != 0) == bool(failing), examined.stdout[-3000:]
    assert failing in examined.stdout


def sandbox(doctor: str) -> str:
    """What doctor says of it: OK or WARN."""
    return re.findall(r"sandbox\s*│\s*(\w+)", doctor)[0]


def test_the_sandbox_works_with_the_options_that_doctor_names(image: Docker, folder: Path) -> None:
    def examined(*options: str) -> str:
        return once(image, folder, "lpo-ray", "doctor", "--quick", options=options).stdout

    assert sandbox(examined()) == "WARN"
    hardened = ("--cap-drop=ALL", "--security-opt=no-new-privileges:true")
    opened = ("--security-opt=seccomp=unconfined", "--security-opt=systempaths=unconfined")
    assert sandbox(examined(*hardened, *opened)) == "OK"


@pytest.mark.parametrize("more", [[], ["gpu"], ["sandbox"], ["gpu", "sandbox"]])
def test_compose_reads_every_combination(engine: Docker, more: list[str]) -> None:
    files = [f"--file={ROOT}/docker/{name}.yaml" for name in ("compose", *(f"compose.{kind}" for kind in more))]
    read = yaml.safe_load(engine.done("compose", *files, "config", cwd=ROOT))
    assert set(read["services"]) == {"head", "learner", "rollout-0", "rollout-1", "verifier"}
    limits = {str(service["ulimits"]) for service in read["services"].values() if "ulimits" in service}
    assert limits == ({"{'memlock': -1}"} if "gpu" in more else set())


def test_compose_makes_containers_as_its_files_say(image: Docker, folder: Path) -> None:
    token = folder / "made.token"
    token.write_text("0" * 64)
    settings = folder / "made.env"
    settings.write_text(f"RAY_TOKEN_FILE={token}\nLPO_RAY_SHM=1gb\nLPO_RAY_IMAGE={IMAGE}\n")
    files = [f"--file={ROOT}/docker/{name}.yaml" for name in ("compose", "compose.gpu", "compose.sandbox")]
    command = ["compose", f"--env-file={settings}", "--project-name=made", *files]
    try:
        image.done(*command, "create", timeout=200, cwd=ROOT)
        made = {}
        for service in ("head", "learner", "rollout-0", "rollout-1", "verifier"):
            inspected = image.done("inspect", "--format={{json .HostConfig}}", f"made-{service}-1")
            made[service] = json.loads(inspected)
    finally:
        image.done(*command, "down", "--volumes", timeout=200, cwd=ROOT)
    assert {config["ShmSize"] for config in made.values()} == {2**30}
    assert {tuple(config["CapDrop"]) for config in made.values()} == {("ALL",)}
    assert all("no-new-privileges:true" in config["SecurityOpt"] for config in made.values())
    opened = {name for name, config in made.items() if "seccomp:unconfined" in config["SecurityOpt"]}
    assert opened == {"verifier"}
    unlimited = {name for name, config in made.items() if config["Ulimits"]}
    assert unlimited == {"learner", "rollout-0", "rollout-1"}
    limits = {limit["Name"]: limit["Hard"] for limit in made["learner"]["Ulimits"]}
    assert limits["memlock"] == -1
    assert {name for name, config in made.items() if config["DeviceRequests"]} == unlimited


def test_a_container_has_its_shared_memory_and_descriptors_and_wants_a_token(image: Docker, folder: Path) -> None:
    asked = "df --output=size -B1 /dev/shm | tail -n 1; ulimit -Sn; ulimit -Hn"
    shared, soft, hard = once(image, folder, "sh", "-c", asked).stdout.split()[-3:]
    assert int(shared) == 2 * 2**30
    assert int(soft) == min(65536, int(hard))  # the entrypoint raises it
    refused = once(image, folder, "head")
    assert refused.returncode == 2
    assert "the token file /home/lpo/.ray/auth_token is missing" in refused.stdout


@pytest.fixture
def compose(image: Docker, folder: Path) -> Iterator[list[str]]:
    """What goes before a command to compose's cluster, which is up with a sandbox for its verifier."""
    token = folder / "token" / "ray.token"
    token.parent.mkdir()
    token.touch(0o600)
    token.write_text(os.urandom(32).hex())
    handing = ["--rm", "--user=0", "--entrypoint=chown", f"--volume={token.parent}:/token"]  # as compose.yaml documents
    image.done("run", *handing, IMAGE, "1000", "/token/ray.token")
    settings = folder / "compose.env"
    settings.write_text(f"RAY_TOKEN_FILE={token}\nLPO_RAY_BIND=127.0.0.53\n")
    own = folder / "compose.own.yaml"
    volume = f"{folder}/policy:/policy:ro"
    services = {name: {"volumes": [volume]} for name in ("head", "learner", "rollout-0", "rollout-1", "verifier")}
    own.write_text(yaml.safe_dump({"services": services}))
    files = [ROOT / "docker" / "compose.yaml", ROOT / "docker" / "compose.sandbox.yaml", own]
    command = ["compose", f"--env-file={settings}", *(f"--file={file}" for file in files)]
    try:
        # no limit beside the files' own: head and workers have their start period each
        up = image(*command, "up", "--detach", "--wait", timeout=900, cwd=ROOT)
        assert up.returncode == 0, up.stdout + image(*command, "logs", "--tail=30", cwd=ROOT).stdout
        yield command
    finally:
        image(*command, "down", "--volumes", timeout=200, cwd=ROOT)


def test_composes_cluster_trains_and_each_container_is_as_its_file_says(image: Docker, compose: list[str]) -> None:
    def inside(service: str, *command: str, timeout: float = 60) -> str:
        return image.done(*compose, "exec", "--no-TTY", service, *command, timeout=timeout, cwd=ROOT)

    where = ["--address", "http://127.0.0.1:8265"]
    followed = inside(
        "head", "lpo-ray", "submit", "configs/quickstart.yaml", "run.dir=/runs", "model.path=/policy", "run.steps=2",
        "rollout.num_workers=2", *SMALL, *ROLES, *where, "--follow", timeout=280,
    )  # fmt: skip
    assert "SUCCEEDED" in followed, followed[-3000:]
    logs = image.done(*compose, "logs", cwd=ROOT)
    assert "object store is using" not in logs  # Ray's warning that it is not in /dev/shm
    for service in ("head", "learner", "rollout-0", "verifier"):
        assert inside(service, "df", "--output=size", "-B1", "/dev/shm").split()[-1] == str(2 * 2**30)
        assert inside(service, "sh", "-c", "cat /proc/1/status | grep CapEff").split() == ["CapEff:", "0" * 16]
    entered = image(*compose, "exec", "--no-TTY", "verifier", "/opt/lpo-ray/docker/healthcheck.sh", "worker", cwd=ROOT)
    assert entered.returncode == 0, entered.stdout
    for service, state in {"learner": "WARN", "verifier": "OK"}.items():
        examine = ["exec", "--no-TTY", service, "lpo-ray", "doctor", "--quick"]
        assert sandbox(image(*compose, *examine, timeout=120, cwd=ROOT).stdout) == state
    started = time.monotonic()
    image.done(*compose, "stop", timeout=150, cwd=ROOT)
    seconds = time.monotonic() - started
    print(f"compose stop took {seconds:.1f} s")  # noqa: T201
    grace = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["x-node"]["stop_grace_period"]
    assert seconds < 2 * int(grace.removesuffix("s"))  # workers, then the head: none was killed
    codes = image.done("ps", "--all", "--format={{.Names}} {{.Status}}")
    assert "(137)" not in codes, codes
