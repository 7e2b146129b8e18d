"""What settings come to that nobody has set, beside what the roles really get."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.cluster import transport_kind
from actors.learner.deepspeed_options import ZERO, engine_config
from lpo_ray.config import load_config
from lpo_ray.learner.settings import zero_options
from lpo_ray.run import settings
from lpo_ray.run.numbers import render
from lpo_ray.run.resolved import Resolved, resolved
from lpo_ray.run.spec import RunSpec, make_spec

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
ON_GPUS = ("rollout.gpus_per_worker=1", "learner.gpus_per_rank=1", "rollout.dtype=bfloat16", "model.dtype=bfloat16")
THRESHOLD = "learner.deepspeed.zero_optimization.stage3_param_persistence_threshold"


def spec_of(model: Path, *overrides: str) -> RunSpec:
    return make_spec(load_config(QUICKSTART, [f"model.path={model}", *overrides]))


def by_key(spec: RunSpec) -> dict[str, Resolved]:
    return {row.key: row for row in resolved(spec)}


@pytest.mark.parametrize(
    ("key", "on_cpus", "on_gpus", "given"),
    [
        ("rollout.engine", "inprocess", "asynchronous", "rollout.engine=asynchronous"),
        ("rollout.enforce_eager", "true: no CUDA graphs", "false: CUDA graphs", "rollout.enforce_eager=true"),
        ("rollout.engine_args.max_num_batched_tokens", "8192", "8192",
         "rollout.engine_args={max_num_batched_tokens: 16384}"),
        ("learner.gradient_checkpointing", "false", "true", "learner.gradient_checkpointing=true"),
        ("learner.threads", "1", "1", "learner.threads=2"),
        ("transport.bucket_mib", "64", "1024", "transport.bucket_mib=256"),
        (THRESHOLD, "0", "DeepSpeed's own",
         "learner.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 7}}"),
        ("learner.deepspeed.zero_optimization.reduce_bucket_size", "20000000", "DeepSpeed's own",
         "learner.deepspeed={zero_optimization: {reduce_bucket_size: 1000000}}"),
    ],
)  # fmt: skip
def test_a_default_is_that_of_the_device_and_says_so(
    key: str, on_cpus: str, on_gpus: str, given: str, tiny_policy: Path
) -> None:
    assert by_key(spec_of(tiny_policy, "learner.world_size=2"))[key] == (key, on_cpus, by_key_source(key, "CPUs"))
    assert by_key(spec_of(tiny_policy, "learner.world_size=2", *ON_GPUS))[key] == (key, on_gpus, by_key_source(key, ""))
    assert by_key(spec_of(tiny_policy, "learner.world_size=2", given))[key].source == "configuration"


def by_key_source(key: str, device: str) -> str:
    if key.startswith("transport"):
        return "default through host memory" if device else "default between GPUs"
    return f"default on {device or 'GPUs'}"


@pytest.mark.parametrize("overrides", [(), ON_GPUS, ("learner.world_size=1",)])
def test_it_shows_what_the_roles_get(overrides: tuple[str, ...], tiny_policy: Path) -> None:
    spec = spec_of(tiny_policy, *overrides)
    rows, config, on_gpu = by_key(spec), spec.config, "rollout.gpus_per_worker=1" in overrides
    engine, learner = settings.engine_settings(spec, ""), settings.learner_settings(spec, "")
    made = engine_config(config.learner.deepspeed, config.model.dtype, world_size=learner.packing.world_size,
                         on_gpu=on_gpu)[ZERO]  # fmt: skip
    for name in ("stage3_param_persistence_threshold", "reduce_bucket_size"):
        shown, value = rows[f"learner.deepspeed.zero_optimization.{name}"].value, made.get(name)
        assert shown == {None: "DeepSpeed's own"}.get(value, "no limit" if (value or 0) > 10**12 else str(value))
    assert rows["rollout.max_model_len"].value == str(engine.max_model_len)
    assert rows["rollout.enforce_eager"].value.startswith(str(engine.enforce_eager).lower())
    assert rows["learner.gradient_checkpointing"].value == str(learner.gradient_checkpointing).lower()
    assert rows["transport.kind"].value == transport_kind(config, 1)
    assert ("rollout.kv_cache_gib" in rows) == (not on_gpu)
    assert ("rollout.engine_args.block_size" in rows) == (not on_gpu)
    assert not zero_options(config.learner.deepspeed)


def test_an_optimizer_on_the_host_has_its_cores_and_one_rank_shards_nothing(tiny_policy: Path) -> None:
    offloaded = "learner.deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}"
    rows = by_key(spec_of(tiny_policy, *ON_GPUS, offloaded, "learner.world_size=1"))
    assert rows["learner.threads"].value == "the host's cores divided among its ranks"
    assert rows[THRESHOLD][1:] == ("no limit", "one rank")


def test_where_a_cluster_is_not_looked_at_both_kinds_of_transport_are_shown(tiny_policy: Path) -> None:
    row = by_key(spec_of(tiny_policy, "cluster.address=auto"))["transport.kind"]
    assert row.value == "shared_memory or, on several nodes, gloo"


def test_in_one_process_there_is_no_engine_of_its_own(tiny_policy: Path) -> None:
    rows = by_key(spec_of(tiny_policy, "cluster.kind=inprocess", "learner.world_size=1"))
    assert set(rows) == {"rollout.max_model_len", "learner.gradient_checkpointing", "learner.threads",
                         "tokens of a chunk of the head"}  # fmt: skip


def test_the_dry_run_has_a_line_for_each(tiny_policy: Path) -> None:
    spec = spec_of(tiny_policy)
    lines = render(spec).splitlines()
    for row in resolved(spec):
        assert any(line.startswith(row.key) and line.endswith(row.source) for line in lines)
