"""A real Prometheus, of the distribution's package, scrapes a real run and answers every query of the dashboard."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.distribution import program
from tests.support.ray_heads import Head, free_port, ray_head

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
RUN = "scraped"
SMALL = (
    "pipeline.groups_per_step=8", "sampling.group_size=4", "evaluation.num_prompts=4", "learner.world_size=1",
    "rollout.kv_cache_gib=0.2", "run.steps=5000", f"run.name={RUN}",
)  # fmt: skip
NODES = "import json, ray, sys; ray.init(sys.argv[1], log_to_driver=False); print(json.dumps(ray.nodes()))"


def query(server: str, path: str, **parameters: str) -> list[object]:
    with urllib.request.urlopen(f"{server}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
        said = json.load(answer)
    assert said["status"] == "success", said
    return said["data"]["result"] if isinstance(said["data"], dict) else said["data"]


def wait_for(what: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if what():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("head")) as found:
        yield found


@pytest.fixture(scope="module")
def server(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Prometheus' address; it scrapes the head's node every second."""
    folder = tmp_path_factory.mktemp("prometheus")
    found = program("prometheus", "prometheus", folder)
    if isinstance(found, str):
        pytest.skip(found)
    nodes = subprocess.run(
        [sys.executable, "-c", NODES, head.gcs], env=head.environment, capture_output=True, text=True, check=True
    ).stdout
    (node,) = json.loads(nodes.splitlines()[-1])
    target = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
    job = {"job_name": "ray", "static_configs": [{"targets": [target]}]}
    (folder / "prometheus.yml").write_text(
        json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]})  # JSON is YAML
    )
    address = f"127.0.0.1:{free_port()}"
    command = [found, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
               f"--web.listen-address={address}"]  # fmt: skip
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_for(lambda: query(f"http://{address}", "query", query="up"), 60)
            yield f"http://{address}"
        finally:
            process.terminate()


def queries() -> Iterator[tuple[str, str]]:
    """Panel and expression of every query, with Grafana's variables filled in."""
    dashboard = json.loads((ROOT / "launch" / "grafana" / "lpo_ray.json").read_text())
    for panel in dashboard["panels"]:
        for part in (panel, *panel.get("panels", [])):
            for target in part.get("targets", []):
                expression = target["expr"].replace("$run", RUN).replace("$__rate_interval", "1m")
                yield part["title"], expression.replace("$__range", "5m")


def lpo_ray(head: Head, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lpo_ray", *arguments, "--address", head.address], cwd=folder, env=head.environment,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_every_query_of_the_dashboard_has_an_answer_of_a_real_run(
    head: Head, server: str, tiny_policy: Path, tmp_path: Path
) -> None:
    quickstart = str(ROOT / "configs" / "quickstart.yaml")
    submitted = lpo_ray(head, tmp_path, "submit", quickstart, f"model.path={tiny_policy}", *SMALL)
    assert submitted.returncode == 0, submitted.stderr
    try:
        done = f'ray_lpo_ray_done_steps{{run="{RUN}"}} > 3'
        wait_for(lambda: query(server, "query", query=done), 240)
        time.sleep(25)  # counters and histograms are reported every ten seconds: two reports make a rate
        assert query(server, "label/run/values", **{"match[]": "ray_lpo_ray_done_steps"}) == [RUN]
        asked = list(queries())
        empty = [(panel, expression) for panel, expression in asked if not query(server, "query", query=expression)]
    finally:
        lpo_ray(head, tmp_path, "stop", RUN)
    assert len(asked) > 40
    assert empty == []
    text = lpo_ray(head, tmp_path, "logs", RUN).stdout
    assert "Traceback" not in text
