"""``lpo-ray plan`` as a user meets it: numbers, what does not fit, exit codes. Nothing starts, nothing is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lpo_ray.cli import plan as check_commands
from lpo_ray.config import load_config
from lpo_ray.errors import ConfigError, DoesNotFit
from lpo_ray.run.numbers import numbers
from lpo_ray.run.spec import make_spec
from lpo_ray.tools.plan.architecture import read_architecture
from lpo_ray.tools.plan.forecast import Assumptions
from lpo_ray.tools.plan.requirements import engine_of
from tests.support.commands import lpo_ray
from tests.support.planning import write_metrics

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted(path.name for path in CONFIGS.glob("paper_*.yaml"))
NOTHING = Assumptions()


def planned(
    capsys: pytest.CaptureFixture[str],
    name: str,
    *overrides: str,
    cluster: str = "8xH100",
    given: Assumptions = NOTHING,
) -> dict[str, Any]:
    """JSON of one cluster; DoesNotFit goes through."""
    clusters = (cluster,) if cluster else ()
    check_commands.plan_command(load_config(CONFIGS / name, overrides), clusters, None, None, given, as_json=True)
    return json.loads(capsys.readouterr().out)


def refused(name: str, *overrides: str, cluster: str = "8xH100") -> str:
    with pytest.raises(DoesNotFit) as caught:
        config = load_config(CONFIGS / name, overrides)
        check_commands.plan_command(config, (cluster,), None, None, NOTHING, as_json=True)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("cluster", ["8xH20", "8xH100", "8xH200"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_papers_recipes_fit_eight_gpus(name: str, cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, name, cluster=cluster)
    assert found["problems"] == []
    config = load_config(CONFIGS / name, ())
    assert found["sampled_tokens_per_step"] == (
        config.pipeline.groups_per_step * config.sampling.group_size * config.sampling.max_tokens / 2
    )
    assert found["weight_bytes_per_step"] == 2 * found["model"]["parameters"]
    assert found["seconds"]["step"] > max(found["seconds"]["sample"], found["seconds"]["train"])
    assert "not measured" in found["rates"]["train"]["source"]
    assert len(found["places"]) == config.learner.world_size + config.rollout.num_workers + 1


def test_the_derived_numbers_are_those_of_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "quickstart.yaml", cluster="")
    assert found["derived"] == numbers(make_spec(load_config(CONFIGS / "quickstart.yaml", ()), for_training=False))
    assert found["model"]["parameters"] == 1_790_656
    assert found["weight_bytes_per_step"] == 4 * 1_790_656  # what the runs' metrics say as well: 7,162,624
    assert found["prompt_tokens"] == pytest.approx(10, abs=1)
    assert found["cluster"][0]["name"] == "this machine"


def test_a_rank_that_does_not_fit_says_how_much_is_missing_and_what_mends_it() -> None:
    said = refused("paper_prime_code.yaml", "learner.gradient_checkpointing=false")
    assert "8xH100: 1 learner rank with 242.4 GiB do not" in said
    assert "fit H100 with 79.1 GiB: 163.3 GiB are missing; try learner.gradient_checkpointing=true (" in said


def test_an_engine_without_room_for_one_sequence_says_so() -> None:
    whole = ("rollout.dtype=float32", "rollout.max_model_len=131072")
    said = refused("paper_prime_code.yaml", *whole, cluster="8xA100-40")
    assert "and one sequence of 131072 positions needs 14.00: " in said
    assert "rollout.tensor_parallel_size=2 rollout.gpus_per_worker=2" in said


def test_bundles_without_a_place_are_named() -> None:
    said = refused("paper_polaris.yaml", cluster="6xH100")
    assert "2 of 4 rollout bundles (1 GPUs and 1 CPUs each, on one node) have no place" in said
    assert "lower rollout.num_workers (4), learner.world_size (4)" in said


def test_a_machine_without_gpus_has_no_place_for_a_recipe() -> None:
    assert "4 of 4 learner bundles (1 GPUs" in refused("paper_polaris.yaml", cluster="4xcpu")


def test_parts_of_an_engine_need_a_gpu_each() -> None:
    with pytest.raises(ConfigError, match=r"set rollout\.gpus_per_worker=2"):  # as train and --dry-run say it
        load_config(CONFIGS / "paper_polaris.yaml", ["rollout.tensor_parallel_size=2"])
    odd = ("rollout.tensor_parallel_size=3", "rollout.gpus_per_worker=3", "rollout.num_workers=1")
    assert "does not divide the model's 32 attention heads" in refused("paper_polaris.yaml", *odd)


def test_a_response_that_leaves_no_room_for_a_prompt() -> None:
    said = refused("paper_math.yaml", "sampling.max_tokens=4096")
    assert "Qwen/Qwen2.5-Math-7B has 4096 positions for prompt and response together" in said
    assert "set sampling.max_tokens=3840 or less" in said


def test_shared_gpus_hold_both_or_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    shared = ("learner.gpus_per_rank=0.5", "rollout.gpus_per_worker=0.5")
    said = refused("paper_polaris.yaml", *shared, "rollout.gpu_memory_utilization=0.85", cluster="4xH100")
    assert "1 learner rank with" in said
    assert "and 1 engine with" in said
    assert "a lower rollout.gpu_memory_utilization" in said
    capsys.readouterr()
    found = planned(capsys, "paper_polaris.yaml", *shared, "rollout.gpu_memory_utilization=0.4", cluster="4xH200")
    assert {tuple(where["devices"]) for where in found["places"] if where["devices"]} == {(0,), (1,), (2,), (3,)}


def test_rates_given_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = Assumptions(response_tokens=8, sample_rate=4096, train_rate=2048, publish_rate=1)
    found = planned(capsys, "quickstart.yaml", cluster="", given=rates)
    assert (found["seconds"]["sample"], found["seconds"]["train"]) == (1, 1)
    assert found["seconds"]["step"] == pytest.approx(2 + 7_162_624e-9)
    write_metrics(tmp_path, 5)
    (tmp_path / "config.yaml").write_text((CONFIGS / "quickstart.yaml").read_text())
    config = load_config(CONFIGS / "quickstart.yaml", ())
    check_commands.plan_command(config, (), None, tmp_path, Assumptions(train_rate=1000), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["rates"]["sample"] == {"value": 500, "source": f"measured in {tmp_path} (3 steps)"}
    assert found["rates"]["train"] == {"value": 1000, "source": "given"}
    assert found["response_tokens"] == 20


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Assumptions(response_tokens=25), "--response-tokens is 25; expected a number above 0 and at most 24"),
        (Assumptions(response_tokens=0), "--response-tokens is 0; expected"),
        (Assumptions(response_tokens=float("nan")), "--response-tokens is nan; expected"),
        (Assumptions(prompt_tokens=-1), "--prompt-tokens is -1; expected"),
        (Assumptions(sample_rate=0), "--sample-rate is 0; expected a number above 0"),
        (Assumptions(train_rate=float("nan")), "--train-rate is nan; expected"),
    ],
)
def test_numbers_that_cannot_be(given: Assumptions, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(capsys, "quickstart.yaml", cluster="", given=given)


def test_unknown_gpus_have_sizes_but_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    from lpo_ray.run.spec import outline
    from lpo_ray.tools.plan.architecture import read_architecture
    from lpo_ray.tools.plan.forecast import make_forecast
    from lpo_ray.tools.plan.machines import Machine

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = read_architecture("Qwen/Qwen3-4B")
    spec = outline(load_config(CONFIGS / "paper_polaris.yaml", ()), model.context)
    machines = [Machine("node", 64, 8, None, 512)]
    found = make_forecast(spec, model, machines, NOTHING)
    assert found.time is None
    assert not found.problems
    assert any("give --sample-rate, or --from-run" in note for note in found.notes)
    assert make_forecast(spec, model, machines, Assumptions(None, None, 1000, 1000, 1)).time is not None


def test_a_host_without_memory_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from lpo_ray.run.spec import outline
    from lpo_ray.tools.plan.architecture import read_architecture
    from lpo_ray.tools.plan.devices import CPU
    from lpo_ray.tools.plan.forecast import make_forecast
    from lpo_ray.tools.plan.machines import Machine

    model = read_architecture(None)
    spec = outline(load_config(CONFIGS / "quickstart.yaml", ()), model.context)
    found = make_forecast(spec, model, [Machine("small", 8, 0, CPU, 2.0)], NOTHING)
    (problem,) = found.problems
    assert problem.startswith("2 learner ranks with ")
    assert "GiB do not fit the memory of small, 2.0 GiB: " in problem


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [8192, 32000])
def test_long_responses_are_no_matter_of_limits(max_tokens: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Their step takes hours; what a limit is for, a piece of it, takes seconds."""
    found = planned(capsys, "paper_polaris.yaml", f"sampling.max_tokens={max_tokens}")
    assert found["problems"] == []
    limits = {limit["setting"]: limit for limit in found["limits"]}
    assert set(limits) == {"rollout.silence_seconds", "learner.silence_seconds", "transport.transfer_seconds"}
    assert all(limit["forecast"] < limit["seconds"] / 10 for limit in limits.values())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rollout.silence_seconds=0.1"], "rollout.silence_seconds leaves 0.050 s for the longest step of an engine"),
        (["learner.silence_seconds=4"], "learner.silence_seconds leaves 2.000 s for a micro-batch and its update"),
        (["transport.transfer_seconds=0.02"], "transport.transfer_seconds leaves 0.010 s for a bucket of weights"),
    ],
)
def test_a_limit_that_a_piece_of_work_exceeds_is_refused_with_the_number(overrides: list[str], said: str) -> None:
    found = refused("paper_polaris.yaml", *overrides)
    assert said in found
    assert re.search(r"takes [\d.]+ s by this forecast.*; raise ", found)


def test_what_is_worth_knowing_about_fixed_times(capsys: pytest.CaptureFixture[str]) -> None:
    slow = planned(capsys, "paper_polaris.yaml", "supervision.start_seconds=5")
    assert any("supervision.start_seconds leaves 5 s" in note for note in slow["notes"])
    leaving = planned(capsys, "paper_polaris.yaml", "cluster.autoscaling=true")
    assert any("rollout.drain_seconds=60 to end its groups" in note for note in leaving["notes"])
    usual = planned(capsys, "paper_polaris.yaml")
    assert not [note for note in usual["notes"] if "seconds" in note]


def test_what_it_costs_to_drop_the_kv_cache_of_long_responses(capsys: pytest.CaptureFixture[str]) -> None:
    stale = ("pipeline.max_staleness=1", "objective.behaviour=engine")
    for mode, said in (("keep_recompute", True), ("abort_resume", True), ("keep_cache", False), ("finish", False)):
        found = planned(capsys, "paper_polaris.yaml", *stale, f"pipeline.inflight={mode}", cluster="8xH200")
        assert any(f"pipeline.inflight={mode} drops the KV cache" in note for note in found["notes"]) is said
    none_in_flight = planned(capsys, "paper_polaris.yaml", cluster="8xH200")
    assert not any("drops the KV cache" in note for note in none_in_flight["notes"])


def test_an_engine_of_more_gpus_than_a_machine_has_says_what_to_do() -> None:
    wide = ("rollout.tensor_parallel_size=16", "rollout.gpus_per_worker=16", "rollout.num_workers=1")
    assert "the processes of an engine are on one node" in refused("paper_polaris.yaml", *wide)


def test_the_whole_context_of_a_model_is_a_setting_that_can_be_lowered() -> None:
    whole = ("rollout.max_model_len=40960", "rollout.gpu_memory_utilization=0.4")
    assert "try rollout.max_model_len=38016, or " in refused("paper_polaris.yaml", *whole, cluster="8xA100-40")


def test_the_command_line(tmp_path: Path) -> None:
    """One process for what the functions above do not pass through: options, streams, exit codes."""
    recipe = str(CONFIGS / "paper_countdown.yaml")
    rows = lpo_ray("plan", recipe, "--cluster", "8xH100", "--cluster", "2xH20", f"run.dir={tmp_path}")
    assert rows.returncode == 0, rows.stderr
    assert "computed, not measured" in rows.stdout
    assert "| 8xH100  | yes  |" in rows.stdout
    assert "| 2xH20   | no   |" in rows.stdout
    assert rows.stderr.startswith("2xH20: 1 of 1 rollout bundles")
    bad = lpo_ray("plan", recipe, "--cluster", "2xH20", "run.name=other")
    assert bad.returncode == 2
    assert "3,085,938,688 parameters" in bad.stdout
    assert bad.stderr.startswith("DoesNotFit: the run does not fit:\n- 2xH20: 1 of 1 rollout bundles")
    both = lpo_ray("plan", recipe, "--cluster", "2xH20", "--address", "auto")
    assert (both.returncode, both.stdout) == (2, "")
    assert "are both given; expected one of them" in both.stderr
    assert list(tmp_path.iterdir()) == []


def test_turns_and_what_environments_say_and_take(capsys: pytest.CaptureFixture[str]) -> None:
    single = planned(capsys, "quickstart.yaml", cluster="")
    assert (single["turns"], single["environment_tokens"]) == (1, 0)
    environment = ("task.environment=tests.support.e2e_environments:Thrice", "sampling.max_turns=3")
    rates = Assumptions(turns=2, environment_seconds=5)
    found = planned(capsys, "quickstart.yaml", *environment, cluster="", given=rates)
    assert (found["turns"], found["environment_seconds"]) == (2, 5)
    assert found["environment_tokens"] > 0
    assert found["learner_positions_per_step"] > single["learner_positions_per_step"]
    assert found["rates"]["longest_seconds"] > single["rates"]["longest_seconds"] + 3 * 5 - 1
    assert found["derived"]["turns of a conversation at most"] == 3
    longer = planned(capsys, "quickstart.yaml", *environment, cluster="", given=Assumptions(response_tokens=70))
    assert longer["response_tokens"] == 70
    for given, said in (
        (Assumptions(turns=4), "--turns is 4; expected 1 to 3"),
        (Assumptions(environment_seconds=-1), "--environment-seconds is -1; expected 0 to 60"),
        (Assumptions(response_tokens=73), "--response-tokens is 73; expected a number above 0 and at most 72"),
    ):
        with pytest.raises(ConfigError, match=said):
            planned(capsys, "quickstart.yaml", *environment, cluster="", given=given)


def test_an_adapter_alone_is_sent_and_has_an_optimiser(capsys: pytest.CaptureFixture[str]) -> None:
    full = planned(capsys, "paper_math.yaml")
    found = planned(capsys, "paper_math.yaml", "model.lora.rank=16")
    half = planned(capsys, "paper_math.yaml", "model.lora.rank=8")
    assert found["weight_bytes_per_step"] == 2 * half["weight_bytes_per_step"] < 0.05 * full["weight_bytes_per_step"]
    assert found["seconds"]["train"] < full["seconds"]["train"]
    with pytest.raises(ConfigError, match=r"model\.lora\.targets has nothing; expected \[all-linear\]"):
        planned(capsys, "paper_math.yaml", "model.lora={rank: 8, targets: [nothing]}")


@pytest.mark.parametrize(("inflight", "versions"), [("keep_recompute", 1), ("keep_version", 3)])
def test_an_engine_has_room_for_the_versions_that_are_alive(inflight: str, versions: int) -> None:
    overrides = ["model.lora.rank=8", "pipeline.max_staleness=2", f"pipeline.inflight={inflight}"]
    spec = make_spec(load_config(CONFIGS / "quickstart.yaml", overrides))
    assert engine_of(spec, read_architecture(spec.config.model.path)).versions == versions
