"""docker/Dockerfile.cpu without Docker: its own steps in fresh Debian roots, then two steps of the quickstart and a
third after a resume in the last one, as the image's user and through its entrypoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launch import roots
from tests.launch.commands import ROOT
from tests.launch.dockerfile import parse_dockerfile
from tests.launch.roots import Build, Root
from tests.support.images import docker_ignores

FREE_GIB = 10
USER = 1000
TRAIN = [
    "lpo-ray", "train", "configs/quickstart.yaml", "evaluation.num_prompts=0", "telemetry.progress=plain",
]  # fmt: skip


def copy_root(base: Path, folder: Path) -> Root:
    subprocess.run(["cp", "-a", "--reflink=auto", base, folder], check=True)
    return Root(folder)


def give_base_policy(root: Root) -> None:
    """The base policy that this machine has built before, if it has; building it anew takes about a minute."""
    cache = Path(os.environ.get("LPO_RAY_CACHE") or Path.home() / ".cache" / "lpo-ray")
    target = root.inside("/home/lpo/.cache/lpo-ray")
    for policy in cache.glob("base-*"):
        if policy.is_dir():
            shutil.copytree(policy, target / policy.name)
    subprocess.run(["chown", "-R", f"{USER}:{USER}", root.inside("/home/lpo")], check=True)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_the_steps_of_the_cpu_image_make_one_that_trains(tmp_path: Path) -> None:
    reason = roots.missing()
    if reason is None and shutil.disk_usage(tmp_path).free < FREE_GIB * 2**30:
        reason = f"needs {FREE_GIB} GiB of disk in {tmp_path}"
    if reason is not None:
        pytest.skip(reason)
    stages = parse_dockerfile(ROOT / "docker" / "Dockerfile.cpu")
    python, suite = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-(\w+)", stages[0].base).groups()
    base = tmp_path / "base"
    try:
        reason = roots.make_root(base, suite)
        if reason is not None:
            pytest.skip(reason)
        found = Root(base).run(["python3", "--version"], timeout=60).stdout
        assert found.startswith(f"Python {python}."), f"{suite} has {found}, the image is of Python {python}"
        build = Build(ROOT, docker_ignores, timeout=400)
        built: dict[str, Root] = {}
        for number, stage in enumerate(stages):
            built[stage.name] = copy_root(base, tmp_path / f"stage-{number}")
            build.carry_out(stage, built[stage.name], built)
        check_image(built[""], json.loads(stages[-1].of("ENTRYPOINT")[0].text))
    finally:
        for folder in tmp_path.iterdir():
            shutil.rmtree(folder)


def check_image(image: Root, entrypoint: list[str]) -> None:
    assert image.user == str(USER)
    writable = ["find", "/opt/lpo-ray", "-writable", "-not", "-type", "l"]
    assert image.run(writable, timeout=60).stdout == ""
    assert "/opt/lpo-ray/.venv/bin/ray" in image.run(["bash", "-lc", "command -v ray"], timeout=60).stdout
    refused = image.run([*entrypoint, "head"], timeout=60)
    assert refused.returncode == 2
    assert "the token file /home/lpo/.ray/auth_token is missing" in refused.stdout
    give_base_policy(image)
    trained = image.run([*entrypoint, *TRAIN, "run.steps=2"], timeout=240)
    assert trained.returncode == 0, trained.stdout[-3000:]
    run = image.inside("/runs/quickstart")
    assert run.stat().st_uid == USER
    assert json.loads((run / "summary.json").read_text())["steps"] == 2
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    resumed = image.run([*entrypoint, *TRAIN, "run.steps=3", "run.resume=auto"], timeout=240)  # Debian's own Python
    assert resumed.returncode == 0, resumed.stdout[-3000:]
    assert "resumed after step 2" in resumed.stdout
    examined = image.run([*entrypoint, "lpo-ray", "doctor", "--quick"], timeout=200)
    assert examined.returncode == 0, examined.stdout[-3000:]
