"""Sizes, rates and places: hand-computed numbers, real models and measured figures beside them, and what must hold."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError
from lpo_ray.learner.packing import Packing, pack_update
from lpo_ray.learner.settings import Objective, OptimiserSettings
from lpo_ray.learner.torch_learner import TorchPolicy
from lpo_ray.learner.updates import run_updates
from lpo_ray.records import Prompt, PromptGroup, Response, ScoredGroup, TargetGroup, zero_anchor
from lpo_ray.telemetry.monitor.advice import Setup
from lpo_ray.tools.plan.architecture import Architecture, describe, read_architecture, shipped_architectures
from lpo_ray.tools.plan.devices import CPU, DEVICES, device_named, device_reported
from lpo_ray.tools.plan.machines import Bundle, Machine, Placement, described, place
from lpo_ray.tools.plan.memory import (
    BYTES,
    GIB,
    EngineShape,
    RankSettings,
    engine_memory,
    head_memory,
    kv_bytes_per_token,
    kv_cache,
    layer_activations,
    rank_memory,
    step_heights,
)
from lpo_ray.tools.plan.problems import for_engine, for_rank, host_problems
from lpo_ray.tools.plan.throughput import (
    Rate,
    Rates,
    Work,
    engine_rate,
    forward_passes,
    measured_in,
    publish_rate,
    rank_rate,
    step_time,
)
from tests.support.planning import shipped, write_metrics

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SMOLLM2 = Architecture(
    "SmolLM2-135M", "its config.json", 134_515_008, 49152 * 576, 3_540_096, 576, 1536, 30, 9, 3, 64, 49152, True, False,
    8192,
)  # fmt: skip
RANK = RankSettings(
    world_size=4, dtype="bfloat16", tokens=32768, scored=32768, gradient_checkpointing=True, reference=False,
    offload_optimizer=False, offload_parameters=False, live_parameters=10**9, bucket_bytes=2**26, on_gpu=True,
)  # fmt: skip
ENGINE = EngineShape("bfloat16", 1, 1, 512, 8192, 2**26, on_gpu=True)
WORK = Work(
    prompts=8, group_size=4, prompt_tokens=100, response_tokens=50, longest_tokens=100, share_prompt=False,
    forward_passes=0.5, updates=2, tokens_per_micro_batch=1000, weight_bytes=2 * 10**9,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-3B", 3_085_938_688),  # the hub's own counts
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen2.5-Math-7B", 7_615_616_512),
        ("Qwen/Qwen3-4B", 4_022_468_096),
    ],
)
def test_shipped_architectures_have_the_published_number_of_parameters(
    name: str, parameters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shipped(name, monkeypatch)
    assert model.parameters == parameters
    assert "the hub was not reached" in model.source


def test_every_paper_recipe_names_a_shipped_architecture() -> None:
    recipes = list((Path(__file__).parents[3] / "configs").glob("paper_*.yaml"))
    named = {line.split("path:")[1].strip() for recipe in recipes for line in recipe.read_text().splitlines()
             if line.startswith("  path:") and "Qwen" in line}  # fmt: skip
    assert len(recipes) == 5
    assert named == set(shipped_architectures())


def small(kind: str, *, tied: bool = True) -> PreTrainedModel:
    sizes = {
        "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
    }  # fmt: skip
    return Qwen3ForCausalLM(Qwen3Config(**sizes)) if kind == "qwen3" else LlamaForCausalLM(LlamaConfig(**sizes))


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_real_model(kind: str, tied: bool, tmp_path: Path) -> None:
    model = small(kind, tied=tied)
    model.save_pretrained(tmp_path)
    read = read_architecture(str(tmp_path))
    assert read.parameters == sum(p.numel() for p in model.parameters())
    assert (read.tied, read.qk_norm, read.num_layers, read.num_kv_heads) == (tied, kind == "qwen3", 4, 4)
    norms = 2 * 256 + (2 * 32 if kind == "qwen3" else 0)
    assert read.largest_layer == 256 * (256 + 128 + 128 + 256) + 3 * 256 * 704 + norms
    assert read.body == 4 * read.largest_layer + 256  # the last norm
    assert read.largest_parameter == 4096 * 256


def test_no_weights_are_needed_to_read_an_architecture(tmp_path: Path) -> None:
    small("llama").config.save_pretrained(tmp_path)
    assert read_architecture(str(tmp_path)).parameters == sum(p.numel() for p in small("llama").parameters())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as a model's configuration"),
        ('{"model_type": "no-such-model"}', "cannot be read as a model's configuration"),
        (
            '{"model_type": "mamba", "num_hidden_layers": 2}',
            "is not a decoder of attention and one feed-forward network",
        ),
        ('{"model_type": "vit"}', "no language model can be built"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "cannot be read as a model's configuration"),
        ('{"model_type": "llama", "num_attention_heads": 7}', "cannot be read as a model's configuration"),
    ],
)
def test_a_broken_config_is_one_line(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read_architecture(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "phimoe", "granitemoe", "glm4_moe", "llama4_text", "gpt_oss"])
def test_a_mixture_of_experts_is_refused_whatever_its_configuration_calls_them(kind: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **sizes}))
    with pytest.raises(ConfigError, match="is not a decoder of attention and one feed-forward network"):
        read_architecture(str(tmp_path))


def test_an_unknown_hub_name_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"put its config\.json in a folder .* Qwen/Qwen3-4B"):
        shipped("nobody/nothing", monkeypatch)
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        read_architecture("/")


def test_memory_by_hand() -> None:
    """SmolLM2, float32, two ranks: shards and gradients 4 bytes, moments 8, halved; no master weights of their own."""
    rank = RankSettings(2, "float32", 2560, 1536, False, False, False, False, 10**9, 2**26, on_gpu=False)
    found = rank_memory(SMOLLM2, rank).device
    assert found["weights"] == found["gradients"] == 4 * 134_515_008 // 2
    assert found["master weights and moments"] == 8 * 134_515_008 // 2
    assert found["gathered weights"] == 4 * 134_515_008  # fewer than may be live: all
    assert found["transport buckets"] == 3 * 2**26
    narrow = rank_memory(SMOLLM2, replace(rank, dtype="bfloat16")).device
    assert narrow["master weights and moments"] == 12 * 134_515_008 // 2
    assert narrow["weights"] == 134_515_008
    # norms 6 H, attention 4 x 9 x 64, feed-forward 4 x 1536 elements of 4 bytes
    assert layer_activations(SMOLLM2, "float32", 1, on_gpu=False) == 4 * (6 * 576 + 4 * 576 + 4 * 1536)
    # norms 2 x (4 + 2 + 2) H bytes; q, out and narrow k, v; feed-forward
    on_gpu = 2 * 8 * 576 + 2 * (2 * 576 + 2 * 192) + 2 * 4 * 1536
    assert layer_activations(SMOLLM2, "bfloat16", 1, on_gpu=True) == on_gpu
    assert kv_bytes_per_token(SMOLLM2, "bfloat16") == 2 * 30 * 3 * 64 * 2
    assert kv_bytes_per_token(SMOLLM2, "bfloat16", 3) == 2 * 30 * 64 * 2
    assert kv_bytes_per_token(SMOLLM2, "bfloat16", 9) == 2 * 30 * 64 * 2  # repeated, not split further


def test_an_lpo_step_takes_what_was_measured() -> None:
    """tests/benchmarks/learner.py: fp32, 2 x 8 sequences of 160 tokens in one micro-batch, one ZeRO-3 rank."""
    measured = json.loads((RESULTS / "learner.json").read_text())["memory_mib"]["LPO step"]["step"]
    rank = RankSettings(1, "float32", 2 * 8 * 160, 2 * 8 * 96, False, False, False, False, 10**9, 2**26, on_gpu=False)
    assert max(step_heights(SMOLLM2, rank)) / 2**20 == pytest.approx(measured, rel=0.03)


def test_a_checkpointed_step_takes_what_was_measured() -> None:
    """The same benchmark's "chunked head": 8 x 512 tokens in plain torch, where gradients are part of the step."""
    measured = json.loads((RESULTS / "learner.json").read_text())["memory_mib"]["chunked head"]["step"]
    rank = RankSettings(1, "float32", 8 * 512, 8 * 511, True, False, False, False, 10**9, 2**26, on_gpu=False)
    start, end, _ = step_heights(SMOLLM2, rank)
    assert max(start, end + 4 * SMOLLM2.parameters) / 2**20 == pytest.approx(measured, rel=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_step_takes_what_torch_counts(kind: str, dtype: str, checkpointing: bool) -> None:
    model = small(kind).to(getattr(torch, dtype)).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = TorchPolicy(model, OptimiserSettings((0.9, 0.999), 0.0, 1.0), attention="packed")
    objective = Objective("forward_kl", "clamp", 0.2, 0.2, "mean", 1.0, behaviour_from_engine=False, reference_kl=0.0)
    update = pack_update([random_group(number) for number in range(4)], Packing(1, 10**6, share_prompt=False))

    def step() -> None:
        run_updates(policy, [update], 0, objective, 1e-6)

    step()  # the optimiser's state exists from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    with tempfile.TemporaryDirectory() as folder:
        profiled.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    measured = max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")
    rank = RankSettings(1, dtype, 4 * 8 * 64, 4 * 8 * 32, checkpointing, False, False, False, 10**9, 0, on_gpu=False)
    start, end, _ = step_heights(describe(model, kind, ""), rank)
    predicted = max(start, end + BYTES[dtype] * sum(p.numel() for p in model.parameters()))
    assert predicted == pytest.approx(measured, rel=0.15)


def random_group(number: int) -> TargetGroup:
    rng = np.random.default_rng(number)
    responses = tuple(
        Response(rng.integers(0, 4096, 32), np.full(32, -5.0, np.float32), np.zeros(32, np.int64), "stop")
        for _ in range(8)
    )
    group = PromptGroup(Prompt(f"p{number}", rng.integers(0, 4096, 32), "{}", "countdown"), 0, responses)
    scored = ScoredGroup(group, rng.integers(0, 2, 8).astype(np.float32))
    return TargetGroup(scored, np.log(rng.dirichlet(np.ones(8))).astype(np.float32), zero_anchor([scored])[0], 1.0)


@given(world_size=st.integers(1, 64), tokens=st.integers(1, 65536), offload=st.booleans(), checkpointing=st.booleans())
def test_memory_falls_with_ranks_and_rises_with_tokens(
    world_size: int, tokens: int, offload: bool, checkpointing: bool
) -> None:
    rank = replace(
        RANK, world_size=world_size + 1, tokens=tokens, offload_optimizer=offload, gradient_checkpointing=checkpointing
    )
    total = rank_memory(SMOLLM2, rank).total
    assert rank_memory(SMOLLM2, replace(rank, world_size=world_size + 2)).total <= total
    assert rank_memory(SMOLLM2, replace(rank, tokens=tokens + 1)).total >= total
    assert rank_memory(SMOLLM2, replace(rank, reference=True)).total > total
    assert rank_memory(SMOLLM2, replace(rank, gradient_checkpointing=True)).total <= total
    assert rank_memory(SMOLLM2, replace(rank, offload_optimizer=True)).total <= total


@given(
    low=st.floats(0.1, 0.9), more=st.floats(0.0, 0.09), parts=st.sampled_from([1, 3]), seqs=st.integers(1, 1024),
    memory=st.floats(10, 200),
)  # fmt: skip
def test_room_for_keys_and_values_grows_with_utilization(
    low: float, more: float, parts: int, seqs: int, memory: float
) -> None:
    engine = replace(ENGINE, tensor_parallel_size=parts, max_num_seqs=seqs)
    cache = kv_cache(SMOLLM2, engine, memory, low)
    assert kv_cache(SMOLLM2, engine, memory, low + more).tokens >= cache.tokens
    assert kv_cache(SMOLLM2, replace(engine, max_num_seqs=seqs + 1), memory, low).tokens <= cache.tokens
    assert cache.tokens * cache.bytes_per_token <= low * memory * GIB
    assert cache.responses(100) * 100 <= cache.tokens


def test_what_is_offloaded_is_on_the_host() -> None:
    moved = rank_memory(SMOLLM2, replace(RANK, offload_optimizer=True, offload_parameters=True))
    assert not {"weights", "master weights and moments", "gradients"} & set(moved.device)
    assert moved.host["master weights and moments"] == 12 * -(-134_515_008 // 4)
    assert set(moved.host) == {"weights", "master weights and moments", "gradients", "reading weights"}
    on_cpu = rank_memory(SMOLLM2, replace(RANK, offload_optimizer=True, on_gpu=False))
    assert not on_cpu.host
    assert "master weights and moments" in on_cpu.device


def test_the_head_of_a_wide_vocabulary_is_in_chunks() -> None:
    """32 x 2^20 logits of a chunk: three fp32 copies and one narrow, whatever the tokens; hidden states beside them."""
    wide = replace(SMOLLM2, vocab_size=2**18, tied=True)
    chunk = 2**25
    assert (
        head_memory(wide, "bfloat16", 10_000, on_gpu=False)
        == max(14 * chunk, 6 * chunk + 8 * 2**18 * 576) + 3 * 10_000 * 576 * 2
    )


def test_the_head_has_4096_tokens_a_chunk_on_gpus() -> None:
    wide = replace(SMOLLM2, vocab_size=2**17, tied=True)
    chunk, rest = 4096 * 2**17, 3 * 10_000 * 576 * 2
    assert head_memory(wide, "bfloat16", 10_000, on_gpu=True) == 14 * chunk + rest
    assert head_memory(wide, "bfloat16", 1000, on_gpu=True) == 14 * 1000 * 2**17 + 3 * 1000 * 576 * 2


def test_start_and_checkpoints_have_heights_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 7 B model in bf16 on 8 GPUs: each rank reads a piece beside its share, one gathers the policy to write it."""
    model = shipped("Qwen/Qwen2.5-7B", monkeypatch)
    found = rank_memory(model, replace(RANK, world_size=8))
    piece = 152_064 * 3584
    assert found.host == {"reading weights": 2 * (2 * piece + -(-model.parameters // 8))}
    assert found.save == 2 * 2 * piece  # in a file; beside it what is gathered at once
    assert found.host["reading weights"] < 2 * model.parameters / 3  # once it was the whole model, in every rank
    on_cpu = rank_memory(model, replace(RANK, world_size=8, on_gpu=False))
    assert not on_cpu.host
    assert on_cpu.save == 0


def test_a_machine_without_the_memory_for_a_checkpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = shipped("Qwen/Qwen2.5-7B", monkeypatch), Config()
    config.learner.gpus_per_rank, config.rollout.gpus_per_worker = 1.0, 1.0
    rank = rank_memory(model, replace(RANK, world_size=2))
    places = [Placement("learner", 0, (0,)), Placement("learner", 1, (0,))]
    needed = rank.host["reading weights"] / GIB
    nodes = [Machine(f"node {n}", math.inf, 1, DEVICES["H100"], needed + 1) for n in (1, 2)]
    [found] = host_problems(config, rank, engine_memory(model, ENGINE), nodes, places)
    assert found.startswith(
        f"1 learner rank with {needed:.1f} and a checkpoint of the policy {rank.save / GIB:.1f} GiB"
    )
    assert "do not fit the memory of node 1" in found


def test_remedies_do_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shipped("Qwen/Qwen2.5-7B", monkeypatch)
    rank = replace(RANK, gradient_checkpointing=False)
    room = int(79.1 * GIB)
    assert rank_memory(model, rank).total > room
    found = for_rank(model, rank, room)
    assert found[0].startswith("learner.gradient_checkpointing=true (")
    assert rank_memory(model, replace(rank, gradient_checkpointing=True)).total <= room
    engine = replace(ENGINE, dtype="float32")
    found = for_engine(model, engine, 39.4, 0.85, 131072)
    assert found == ["rollout.tensor_parallel_size=2 rollout.gpus_per_worker=2"]
    assert kv_cache(model, replace(engine, tensor_parallel_size=2), 39.4, 0.85).tokens >= 131072
    assert for_rank(model, rank, 0) == []
    assert for_engine(model, engine, 1.0, 0.85, 131072) == []


def test_new_weights_come_on_top_of_what_vllm_may_take() -> None:
    memory = engine_memory(SMOLLM2, ENGINE)
    room = int(0.85 * 40 * GIB) - memory.total + memory.device["new weights"]
    assert kv_cache(SMOLLM2, ENGINE, 40, 0.85).num_bytes == room


def test_cpu_rates_are_near_what_the_learner_reached() -> None:
    """SmolLM2, 4 x 8 x (64 + 96) tokens, one rank on two cores: tests/benchmarks/learner.py counts all positions."""
    rows = json.loads((RESULTS / "learner.json").read_text())["speed"]
    two = replace(CPU, bf16=2 * CPU.bf16, fp32=2 * CPU.fp32, bandwidth=2 * CPU.bandwidth)
    work = Work(4, 8, 64, 96, 96, False, 0.0, 1, 2560, 0)
    for dtype in ("float32", "bfloat16"):
        measured = next(
            row["tokens_per_second"] for row in rows
            if (row["table"], row["dtype"], row["variant"]) == ("smollm2", dtype, "project")
        )  # fmt: skip
        rate = rank_rate(SMOLLM2, two, dtype, work, world_size=1, checkpointing=False, offload=False)
        assert rate * (64 + 96) / 96 == pytest.approx(measured, rel=0.25)


def test_forward_passes_are_those_that_the_learner_makes() -> None:
    assert forward_passes(1, from_engine=False, around_anchor=True, reference=False) == 0
    assert forward_passes(2, from_engine=False, around_anchor=False, reference=False) == 0.5
    assert forward_passes(2, from_engine=True, around_anchor=True, reference=False) == 1.5
    assert forward_passes(2, from_engine=True, around_anchor=False, reference=True) == 2


def test_a_step_by_hand() -> None:
    """1,600 tokens: 2 engines of 100 a second take 8 s, 4 ranks of 200 take 2 s, 2 GB at 1 GB/s take 2 s."""
    rates = Rates(Rate(100, "given"), Rate(200, "given"), Rate(1, "given"))
    turns = step_time(WORK, rates, Setup(0, 2, 4, 1))
    assert (turns.sample, turns.train, turns.publish, turns.step, turns.lane) == (8, 2, 2, 12, "sampling")
    assert turns.advice is not None
    assert "add rollout workers (lpo-ray scale RUN rollout=8, or rollout.num_workers=8)" in turns.advice
    overlapped = step_time(WORK, rates, Setup(1, 2, 4, 1))
    assert overlapped.step == 10
    held_up = step_time(WORK, replace(rates, longest_seconds=30), Setup(1, 2, 4, 1))
    assert held_up.sample == 30
    learning = step_time(WORK, replace(rates, train=Rate(10, "given")), Setup(1, 2, 4, 1))
    assert (learning.lane, learning.step) == ("learning", 42)
    assert learning.advice is not None and "more learner ranks (learner.world_size=" in learning.advice


@given(slots=st.integers(1, 511), name=st.sampled_from(["H20", "H100", "H200", "A100", "L40S"]))
def test_more_slots_sample_faster_and_longest_alone_takes_its_time(slots: int, name: str) -> None:
    device = DEVICES[name]
    fewer, alone = engine_rate(SMOLLM2, device, "bfloat16", WORK, 1, slots)
    more, _ = engine_rate(SMOLLM2, device, "bfloat16", WORK, 1, slots + 1)
    assert more > fewer
    assert alone >= WORK.longest_tokens * 0.004


@given(world_size=st.integers(1, 32))
def test_more_ranks_never_make_a_step_slower(world_size: int) -> None:
    def seconds(ranks: int) -> float:
        rate = rank_rate(
            SMOLLM2, DEVICES["H100"], "bfloat16", replace(WORK, prompts=4096), world_size=ranks, checkpointing=True,
            offload=False,
        )  # fmt: skip
        return 1 / (ranks * rate)

    assert seconds(world_size + 1) <= seconds(world_size) * 1.001


def test_devices_by_name() -> None:
    assert device_named("h100") is DEVICES["H100"]
    with pytest.raises(ConfigError, match="'H900' is not known; expected one of H20, H100"):
        device_named("H900")
    assert device_reported("NVIDIA H100 80GB HBM3") is DEVICES["H100"]
    assert device_reported("NVIDIA A100-SXM4-40GB", 39.4) is DEVICES["A100-40"]
    assert device_reported("NVIDIA A100-SXM4-80GB", 79.2) is DEVICES["A100"]
    assert device_reported("A100-40G") is DEVICES["A100-40"]
    assert device_reported("NVIDIA H200") is DEVICES["H200"]
    assert device_reported("Tesla T4") is None


def test_clusters_by_description() -> None:
    assert [(m.gpus, m.device) for m in described("2x8xH200")] == [(8, DEVICES["H200"])] * 2
    assert [m.gpus for m in described("8xH100+4xcpu")] == [8, 0]
    assert described("4xcpu")[0].cpus == 4
    memory = [m.memory_gib for m in described("2x8xH200@1024+2xA100+4xcpu@16+1xcpu")]
    assert memory == [1024, 1024, 256, 16, math.inf]


@pytest.mark.parametrize("text", ["", "H100", "8H100", "0xH100", "8x100", "-1xH100", "8 x H100 nodes", "2x0xH100"])
def test_a_description_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="expected nodes x devices x kind, such as 8xH100"):
        described(text)


def machine(gpus: int, cpus: float = math.inf) -> Machine:
    return Machine("node", cpus, gpus, DEVICES["H100"], math.inf)


def test_ranks_are_packed_and_engines_spread() -> None:
    wanted = [Bundle("learner", 1, 1)] * 4 + [Bundle("rollout", 1, 1)] * 4
    found = place(wanted, [machine(8), machine(8)], spread=frozenset({"rollout"}))
    assert [where.machine for where in found if isinstance(where, Placement)] == [0, 0, 0, 0, 0, 1, 0, 1]


def test_shares_of_a_gpu_stand_beside_each_other() -> None:
    wanted = [Bundle("learner", 1, 0.5), Bundle("rollout", 1, 0.5), Bundle("rollout", 1, 0.3)]
    found = place(wanted, [machine(2)], spread=frozenset({"rollout"}))
    assert [where.devices for where in found if isinstance(where, Placement)] == [(0,), (0,), (1,)]


def test_what_has_no_place_is_named() -> None:
    wanted = [Bundle("learner", 1, 1)] * 4 + [Bundle("rollout", 1, 2)] * 3
    found = place(wanted, [machine(8, cpus=64)], spread=frozenset({"rollout"}))
    assert found == (
        "1 of 3 rollout bundles (2 GPUs and 1 CPUs each, on one node) have no place: node has 0 of 8 GPUs and 58 of 64 "
        "CPUs free"
    )
    assert "4 of 4 learner bundles" in str(place(wanted, [machine(0)], spread=frozenset()))


@given(
    ranks=st.integers(1, 8), engines=st.integers(1, 8), parts=st.integers(1, 4), nodes=st.integers(1, 4),
    share=st.sampled_from([0.25, 0.5, 1.0]),
)  # fmt: skip
def test_no_gpu_is_given_out_twice(ranks: int, engines: int, parts: int, nodes: int, share: float) -> None:
    wanted = [Bundle("learner", 1, share)] * ranks + [Bundle("rollout", 1, parts)] * engines
    found = place(wanted, [machine(4) for _ in range(nodes)], spread=frozenset({"rollout"}))
    if isinstance(found, str):
        assert ranks * share + engines * parts > 4 * nodes - 4  # at most the odd ends of nodes are left
        return
    taken: dict[tuple[int, int], float] = {}
    for bundle, where in zip(wanted, found, strict=True):
        assert len(set(where.devices)) == math.ceil(bundle.gpus)
        for device in where.devices:
            taken[where.machine, device] = taken.get((where.machine, device), 0.0) + min(1.0, bundle.gpus)
    assert max(taken.values()) <= 1.0 + 1e-6


def test_rates_of_a_run(tmp_path: Path) -> None:
    """1,000 tokens in 2 s of sampling by 2 engines, and in 1 s of learning by 4 ranks."""
    write_metrics(tmp_path, 5)
    found = measured_in(tmp_path, num_workers=2, world_size=4)
    assert (found.rates.sample.value, found.rates.train.value, found.rates.publish.value) == (250, 250, 0.5)
    assert (found.response_tokens, found.step_seconds, found.steps) == (20, 4, 3)
    assert found.rates.sample.source == f"measured in {tmp_path} (3 steps)"


def test_a_run_that_says_too_little(tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(ConfigError) as caught:
            measured_in(tmp_path, num_workers=1, world_size=1)
        return str(caught.value)

    assert "has no metrics.jsonl; expected the folder of a run" in message()
    write_metrics(tmp_path, 2)
    assert "expected a run that has done at least 3 steps" in message()
    write_metrics(tmp_path, 5, engines_sample=None)
    assert "lacks a number that plan needs ('engines_sample')" in message()
    write_metrics(tmp_path, 5, seconds=0.0)
    assert "lacks a number that plan needs" in message()
    (tmp_path / "metrics.jsonl").write_text('{"tokens": \n')
    assert "expected one JSON object a line" in message()
    (tmp_path / "metrics.jsonl").write_text("[1]\n" * 5)
    assert "lacks a number that plan needs" in message()


def test_publishing_32_billion_parameters_between_gpus_takes_seconds() -> None:
    """By way of the host it takes half a minute; TRL reports 2.3 s between 16 and 16 H200 over a network."""
    weights, mib = 2 * 32_762_123_264, 2**20

    def seconds(between_gpus: bool, bucket_bytes: int) -> float:
        rate = publish_rate(
            DEVICES["H100"],
            between_gpus=between_gpus,
            world_size=8,
            weight_bytes=weights,
            bucket_bytes=bucket_bytes,
        )
        return weights / 1e9 / rate

    assert 1 < seconds(True, 1024 * mib) < 3
    assert seconds(True, 64 * mib) > 10  # most of it for calls
    assert seconds(False, 64 * mib) == pytest.approx(26.8, abs=0.1)
