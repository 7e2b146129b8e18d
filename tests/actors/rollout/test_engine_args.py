"""What reaches vLLM: its configuration on a made-up GPU machine and on a CPU, and what of engine_args is passed on."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from actors.rollout.engine_args import PASSED, REFUSED, SET_BY, passed_through
from actors.rollout.worker import engine_environment
from lpo_ray.config import load_config
from lpo_ray.errors import ConfigError
from lpo_ray.rollout.engine_settings import EngineSettings
from lpo_ray.run.settings import engine_settings
from lpo_ray.run.spec import outline

CONFIGS = Path(__file__).parents[3] / "configs"


def settings_of(*overrides: str, recipe: str = "quickstart.yaml", context: int = 64, path: str = "") -> EngineSettings:
    return engine_settings(outline(load_config(CONFIGS / recipe, overrides), context), path)


def configuration(device: str, settings: EngineSettings) -> Mapping[str, object]:
    """Have vLLM make the configuration of the engine, on a made-up ``device``."""
    given = json.dumps({**dataclasses.asdict(settings), "inflight": settings.inflight.value})
    command = [sys.executable, "-m", "tests.support.engine_stubs", device]
    environment = {**os.environ, **engine_environment(settings, 1)}
    done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("FOUND ")[2])


@pytest.mark.slow
def test_an_engine_on_gpus_has_graphs_large_steps_and_processes_of_its_own(tiny_policy: Path) -> None:
    gpus = ("rollout.gpus_per_worker=4", "rollout.tensor_parallel_size=2", "rollout.dtype=bfloat16")
    extra = "rollout.engine_args={pipeline_parallel_size: 2, kv_cache_dtype: fp8, enable_prefix_caching: false}"
    found = configuration("cuda", settings_of(*gpus, extra, path=str(tiny_policy)))
    assert (found["executor"], found["world_size"]) == ("mp", 4)  # Ray's would want four bundles
    assert found["batched_tokens"] == 8192  # vLLM's own default is 2048 here
    assert found["chunked_prefill"] is True
    assert found["cudagraphs"] == "FULL_AND_PIECEWISE"
    assert found["max_model_len"] == 64
    assert str(found["kv_cache_dtype"]).startswith("fp8")
    assert found["memory"] == 0.85
    assert (found["logprobs_mode"], found["policy"]) == ("processed_logprobs", "priority")


@pytest.mark.slow
def test_an_engine_on_cpus_computes_prompts_whole_and_eagerly(tiny_policy: Path) -> None:
    found = configuration(
        "cpu", settings_of("rollout.engine_args={max_num_batched_tokens: 600}", path=str(tiny_policy))
    )
    assert (found["executor"], found["world_size"], found["cudagraphs"]) == ("uni", 1, "NONE")
    assert (found["batched_tokens"], found["chunked_prefill"], found["block_size"]) == (600, False, 32)


def test_defaults_go_by_the_device() -> None:
    gpu, cpu = settings_of("rollout.gpus_per_worker=1"), settings_of()
    assert (gpu.enforce_eager, gpu.asynchronous, gpu.on_cpu, gpu.num_processes) == (False, True, False, 1)
    assert (cpu.enforce_eager, cpu.asynchronous, cpu.on_cpu, cpu.num_processes) == (True, False, True, 1)
    assert gpu.max_num_batched_tokens == cpu.max_num_batched_tokens == 8192
    assert settings_of(context=20000).max_num_batched_tokens == 20000  # a prompt is computed whole there
    assert settings_of("rollout.gpus_per_worker=1", context=20000).max_num_batched_tokens == 8192
    assert settings_of("rollout.gpus_per_worker=1", "rollout.enforce_eager=true").enforce_eager
    assert not settings_of("rollout.enforce_eager=false").enforce_eager
    assert settings_of("rollout.gpus_per_worker=0.5").gpu_memory_utilization == 0.425  # the other half is the learner's
    assert (
        settings_of("rollout.gpus_per_worker=0.5", "rollout.gpu_memory_utilization=0.3").gpu_memory_utilization == 0.3
    )


def test_processes_of_an_engine_on_cpus_are_bound_to_no_core_and_have_their_threads() -> None:
    environment = engine_environment(settings_of("rollout.tensor_parallel_size=2"), 3)
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in engine_environment(settings_of("rollout.gpus_per_worker=1"), 1)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("{max_num_batched_token: 1}", "is no argument of vLLM's engine; did you mean max_num_batched_tokens"),
        ("{max-num-batched-tokens: 1}", "did you mean max_num_batched_tokens"),
        ("{zzz: 1}", "is no argument of vLLM's engine; expected some of all2all_backend"),
        ("{max_model_len: 4}", "max_model_len is set by rollout.max_model_len"),
        ("{seed: 4}", "seed is set by run.seed, from which each response has a seed of its own"),
        ("{generation_config: auto}", "set by the section sampling"),
        ("{override_generation_config: {temperature: 2}}", "set by the section sampling"),
        ("{distributed_executor_backend: ray}", "set by rollout.tensor_parallel_size and rollout.gpus_per_worker"),
        ("{speculative_config: {method: ngram}}", "is not passed through: nothing publishes to a draft model"),
        ("{logits_processors: [a.b]}", "responses would come from another distribution than their log-probs say"),
        ("{logprobs_mode: raw_logprobs}", "responses would come from another distribution"),
        ("{hf_overrides: {rope_theta: 1}}", "would be another model than the one that is trained"),
        ("{revision: abc}", "would be another model"),
        ("{enable_lora: true}", "model.lora says which adapter"),
        ("{nnodes: 2}", "an engine's processes are on one node"),
        ("{data_parallel_size: 2}", "rollout.num_workers=N is N engines that are each proved"),
        ("{kv_offloading_size: 4}", "keeps keys and values of weights that are no longer served"),
        ("{cpu_offload_gb: 4}", "it keeps weights where a publish does not renew them"),
        ("{load_format: dummy}", "the baseline that its published weights are held to"),
        ("{hf_token: abc}", "set HF_TOKEN in the environment"),
        ("{additional_config: {a: 1}}", "nothing here has shown that an engine with it samples what the learner"),
        ("{quantization: awq}", "expected one of fp8_per_tensor"),
        ("{max_num_batched_tokens: many}", "max_num_batched_tokens is 'many', which vLLM refuses"),
        ("{kv_cache_dtype: fp7}", "kv_cache_dtype is 'fp7', which vLLM refuses"),
        ("{compilation_config: {leve: 3}}", "compilation_config is {'leve': 3}, which vLLM refuses (leve: Unexpected"),
        ("{enable_chunked_prefill: true}", "on CPUs vLLM computes prompts with seeds as a whole only"),
        ("{kv_cache_memory_bytes: 10}", "is set by rollout.kv_cache_gib"),
        ("{max_num_batched_tokens: 255}", "expected 256 at least: one token for each of rollout.max_num_seqs, and on"),
    ],
)
def test_what_is_not_passed_through_is_refused_with_what_to_do(extra: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        passed_through(settings_of(f"rollout.engine_args={extra}"))
    assert str(refused.value).startswith("rollout.engine_args.")
    assert said in str(refused.value)


def test_what_is_passed_has_vllms_types() -> None:
    from vllm.config import CompilationConfig

    extra = "{max_num_batched_tokens: 512, kv_cache_dtype: fp8, compilation_config: {cudagraph_capture_sizes: [1, 8]}}"
    found = passed_through(settings_of("rollout.gpus_per_worker=1", f"rollout.engine_args={extra}"))
    assert found["max_num_batched_tokens"] == 512
    assert found["kv_cache_dtype"] == "fp8"
    compilation = found["compilation_config"]
    assert isinstance(compilation, CompilationConfig)
    assert compilation.cudagraph_capture_sizes == [1, 8]


def test_every_name_is_vllms_and_in_one_table() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    tables = [set(SET_BY), set(REFUSED), set(PASSED)]
    assert set().union(*tables) <= {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert sum(map(len, tables)) == len(set().union(*tables))
