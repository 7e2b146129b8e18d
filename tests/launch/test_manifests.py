"""launch/*.yaml against the schemas of those who read them, and against each other."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from lpo_ray.cli.app import cli
from lpo_ray.config import load_config
from tests.launch.commands import ROOT, commands
from tests.support.manifests import ROLES, parse_ray, schema_of

KUBERAY = ROOT / "launch" / "kuberay"
SCHEMAS = {"RayCluster": "raycluster", "RayJob": "rayjob"}
SUBMITTED_BY = [
    ROOT / "launch" / "ray_up.yaml", KUBERAY / "raycluster.yaml", ROOT / "docker" / "compose.yaml",
    ROOT / "docker" / "compose.gpu.yaml",
]  # fmt: skip
MANIFESTS = [*SUBMITTED_BY, KUBERAY / "rayjob.yaml", KUBERAY / "runs.yaml"]


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((KUBERAY / name).read_text())


def strict(schema: Any) -> Any:
    """The schema without room for fields that it does not name, as the Kubernetes API server prunes them."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    is_schema_of_object = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if is_schema_of_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def kuberay_schema(kind: str) -> dict[str, Any]:
    return strict(schema_of(f"kuberay/{SCHEMAS[kind]}.v1"))


def problems(document: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(kuberay_schema(document["kind"]))
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(document)]


def cluster() -> dict[str, Any]:
    return manifest("raycluster.yaml")["spec"]


def groups() -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster()["workerGroupSpecs"]}


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_takes_the_manifest_and_knows_every_field(name: str) -> None:
    assert problems(manifest(name)) == []


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ((), "autoscaling", True),
        (("authOptions",), "secret", "x"),
        (("headGroupSpec", "template", "spec"), "runAsUser", 1000),
        (("workerGroupSpecs", 1, "template", "spec", "containers", 0), "shm_size", "2gb"),
        (("workerGroupSpecs", 1), "minReplicas", "one"),
        (("authOptions",), "mode", "password"),
    ],
)
def test_the_check_finds_unknown_fields_and_wrong_values(where: tuple[str | int, ...], key: str, value: object) -> None:
    document = copy.deepcopy(manifest("raycluster.yaml"))
    node = document["spec"]
    for part in where:
        node = node[part]
    node[key] = value
    assert len(problems(document)) == 1


def test_a_group_without_its_bounds_is_refused() -> None:
    document = copy.deepcopy(manifest("raycluster.yaml"))
    del document["spec"]["workerGroupSpecs"][1]["maxReplicas"]
    assert problems(document) == ["spec.workerGroupSpecs.1: 'maxReplicas' is a required property"]


def kubernetes_problems(document: dict[str, Any]) -> list[str]:
    schema = schema_of("kubernetes/core.v1.37")
    root = {**schema, "$ref": f"#/$defs/{document['kind']}"}
    return [error.message for error in jsonschema.Draft202012Validator(root).iter_errors(document)]


def test_pods_and_the_claim_are_what_kubernetes_takes() -> None:
    templates = [cluster()["headGroupSpec"]["template"]] + [group["template"] for group in groups().values()]
    for template in templates:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        assert kubernetes_problems(pod) == []
    assert kubernetes_problems(manifest("runs.yaml")) == []
    wrong = copy.deepcopy(pod)
    wrong["spec"]["containers"][0]["gpu"] = 1
    assert kubernetes_problems(wrong) == ["Additional properties are not allowed ('gpu' was unexpected)"]


def test_the_job_runs_on_the_same_cluster() -> None:
    assert manifest("rayjob.yaml")["spec"]["rayClusterSpec"] == cluster()


def with_rdma() -> dict[str, Any]:
    """raycluster.yaml as kustomization.yaml changes it: what JSON Patch says of add and test."""
    found = manifest("kustomization.yaml")
    assert found["resources"] == ["raycluster.yaml"]
    (patch,) = found["patches"]
    document = json.loads(json.dumps(manifest("raycluster.yaml")))  # anchors stand for copies
    assert patch["target"]["name"] == document["metadata"]["name"]
    for change in yaml.safe_load(patch["patch"]):
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in change["path"].split("/")[1:]]
        node = document
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        if change["op"] == "test":
            assert node[last] == change["value"]
        else:
            assert change["op"] == "add"
            node[last] = change["value"]
    return document


def test_with_rdma_the_gpu_groups_have_the_hosts_network_and_devices_and_the_others_do_not() -> None:
    document = with_rdma()
    assert problems(document) == []
    for group in document["spec"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        container, on_gpu = pod["containers"][0], group["groupName"] != "verifier"
        assert pod.get("hostNetwork", False) == on_gpu
        assert (pod.get("dnsPolicy") == "ClusterFirstWithHostNet") == on_gpu
        assert container["securityContext"]["capabilities"] == {
            "drop": ["ALL"],
            **({"add": ["IPC_LOCK"]} if on_gpu else {}),
        }
        resources = container["resources"]
        assert resources["limits"] == resources["requests"]
        assert any(name.startswith("rdma/") for name in resources["limits"]) == on_gpu
        template = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
        assert kubernetes_problems(template) == []


def test_every_role_has_a_group_with_its_label_and_its_own_bounds() -> None:
    assert list(groups()) == ROLES
    for role, group in groups().items():
        assert group["labels"] == {"lpo-ray/role": role}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
        assert ("nvidia.com/gpu" in resources["limits"]) == (role != "verifier")
    assert cluster()["enableInTreeAutoscaling"] is True
    rollout = groups()["rollout"]
    assert rollout["minReplicas"] < rollout["maxReplicas"]


def test_pods_are_not_root_and_cannot_become_it() -> None:
    for template in [cluster()["headGroupSpec"]["template"]] + [group["template"] for group in groups().values()]:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        container = pod["containers"][0]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_ray_that_kuberay_is_told_of_is_the_one_in_the_lock() -> None:
    lock = (ROOT / "requirements-cpu.lock").read_text()
    assert f"ray=={cluster()['rayVersion']}" in lock.splitlines()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_token_is_named_and_never_written(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"RAY_AUTH_TOKEN\b", text)
    assert not re.search(r"--from-literal|\b[0-9a-f]{32,}\b", text)
    assert "RAY_AUTH_MODE: disabled" not in text
    assert "RAY_AUTH_MODE=disabled" not in text
    if path.parent == KUBERAY and path.name != "runs.yaml":
        assert "authOptions: {mode: token, secretName: lpo-ray-token}" in text


def launcher() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "launch" / "ray_up.yaml").read_text())


def test_the_cluster_launcher_takes_its_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(launcher()))
    with pytest.raises(jsonschema.ValidationError, match="max_nodes"):
        validate_config(prepare_config({**launcher(), "max_nodes": 3}))
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config({**launcher(), "head_node_type": "chief"}))


def test_the_launchers_nodes_have_roles_and_bounds() -> None:
    config = launcher()
    kinds = config["available_node_types"]
    assert list(kinds) == [config["head_node_type"], *ROLES]
    assert config["max_workers"] == sum(kinds[role]["max_workers"] for role in ROLES)
    for role in ROLES:
        assert kinds[role]["labels"] == {"lpo-ray/role": role}
        assert kinds[role]["min_workers"] <= kinds[role]["max_workers"]
        assert bool(kinds[role]["resources"]["GPU"]) == (role != "verifier")
    for role in ("head", "worker"):
        *_, secured, start = config[f"{role}_start_ray_commands"]
        assert secured == "chmod 600 ~/.ray/auth_token"
        assert "RAY_AUTH_MODE=token " in start


def parse(command: list[str]) -> click.Context:
    """What the real command line makes of it. Raises click.UsageError."""
    assert command[0] == "lpo-ray"
    return cli.commands[command[1]].make_context(command[1], command[2:])


@pytest.mark.parametrize("path", SUBMITTED_BY, ids=lambda path: path.name)
def test_the_last_command_is_submit_with_a_configuration_that_is_valid(path: Path) -> None:
    (command,) = commands(path, "lpo-ray submit")
    config, *overrides = [word for word in command[2:-2] if not word.startswith("--")]
    load_config(ROOT / config, overrides)
    assert command[-2:] == ["--address", "http://127.0.0.1:8265"]
    if "submit" not in cli.commands:
        pytest.skip("this command line has no submit yet")
    parsed = parse(command).params
    assert str(parsed["config"]) == config
    assert list(parsed["overrides"]) == overrides
    assert parsed["address"] == "http://127.0.0.1:8265"


def test_the_jobs_entrypoint_is_train_on_the_cluster_it_runs_in() -> None:
    entrypoint = shlex.split(manifest("rayjob.yaml")["spec"]["entrypoint"])
    parsed = parse(entrypoint)
    in_image = Path("/opt/lpo-ray")
    config = load_config(ROOT / Path(parsed.params["config"]).relative_to(in_image), parsed.params["overrides"])
    assert config.cluster.address == "auto"
    assert config.run.dir == "/runs"
    (submitted,) = commands(KUBERAY / "raycluster.yaml", "lpo-ray submit")
    assert set(submitted[3:-2]) <= set(entrypoint)


@pytest.mark.parametrize("path", SUBMITTED_BY, ids=lambda path: path.name)
def test_every_role_is_bound_to_the_nodes_of_its_label(path: Path) -> None:
    (command,) = commands(path, "lpo-ray submit")
    config = load_config(ROOT / command[2], command[3:-2])
    asked = {"learner": config.learner, "rollout": config.rollout, "verifier": config.verifier}
    assert {role: section.labels for role, section in asked.items()} == {role: {"lpo-ray/role": role} for role in ROLES}


def test_what_the_example_asks_for_is_what_the_groups_have() -> None:
    (submitted,) = commands(KUBERAY / "raycluster.yaml", "lpo-ray submit")
    config = load_config(ROOT / submitted[2], submitted[3:-2])
    asked = {
        "learner": config.learner.world_size * config.learner.gpus_per_rank,
        "rollout": config.rollout.num_workers * config.rollout.gpus_per_worker,
    }
    for role, gpus in asked.items():
        limits = groups()[role]["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert gpus == groups()[role]["replicas"] * int(limits["nvidia.com/gpu"])


def test_ray_knows_every_flag_of_the_launcher() -> None:
    config = launcher()
    for role in ("head", "worker"):
        words = shlex.split(config[f"{role}_start_ray_commands"][-1])
        parse_ray(words[words.index("ray") :])
    with pytest.raises(click.UsageError, match="no-such"):
        parse_ray(["ray", "start", "--no-such-flag"])


@pytest.mark.parametrize("role", ROLES)
def test_ray_takes_the_labels(role: str) -> None:
    from ray._private.label_utils import parse_node_labels_string

    assert parse_node_labels_string(f"lpo-ray/role={role}") == {"lpo-ray/role": role}
