from __future__ import annotations

import math
from pathlib import Path

import pytest

from lpo_ray.config import dump_config, load_config
from lpo_ray.config.ranges import value_at
from lpo_ray.config.spellings import PATHS
from lpo_ray.errors import ConfigError
from lpo_ray.learner.targets import StaleRule
from lpo_ray.run.numbers import numbers
from lpo_ray.run.settings import objectives, stale_rule, target_rules
from lpo_ray.run.spec import make_spec

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"


def failure(*overrides: str, path: Path = QUICKSTART) -> str:
    with pytest.raises(ConfigError) as caught:
        make_spec(load_config(path, overrides))
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_says_what_it_needs(path: Path) -> None:
    config = load_config(path)
    assert config.run.name
    assert "# Needs:" in path.read_text()


def test_there_are_the_papers_five_recipes() -> None:
    assert len(list(CONFIGS.glob("paper_*.yaml"))) == 5


def test_overrides_win_and_the_resolved_config_is_the_same_run(tmp_path: Path) -> None:
    config = load_config(QUICKSTART, ["run.seed=7", "objective.target_temperature=0.5", "task.counts=[3,4]"])
    assert (config.run.seed, config.objective.target_temperature, config.task.counts) == (7, 0.5, [3, 4])
    resolved = tmp_path / "config.yaml"
    resolved.write_text(dump_config(config))
    assert load_config(resolved) == config


def test_keys_of_an_earlier_version_mean_what_they_mean_now(tmp_path: Path) -> None:
    """A run that was begun with them is resumed, from its folder's configuration or the user's own."""
    old = ["rollout.deadline_seconds=50", "learner.deadline_seconds=70", "pipeline.lease_seconds=3"]
    found = load_config(QUICKSTART, old)
    assert (found.rollout.silence_seconds, found.learner.silence_seconds) == (50, 70)
    file = tmp_path / "config.yaml"
    text = dump_config(found).replace("  silence_seconds", "  deadline_seconds")
    file.write_text(text.replace("pipeline:\n", "pipeline:\n  lease_seconds: 1200.0\n"))
    assert load_config(file) == found
    both = load_config(file, ["rollout.silence_seconds=9", "learner.deadline_seconds=8"])
    assert (both.rollout.silence_seconds, both.learner.silence_seconds) == (9, 8)
    assert "did you mean rollout.drain_seconds" in failure("rollout.deadline_second=1")
    offload = {"offload_optimizer": {"device": "cpu"}}
    for zero in (["learner.zero={offload_optimizer: {device: cpu}}"], ["learner.zero.offload_optimizer.device=cpu"]):
        assert load_config(QUICKSTART, zero).learner.deepspeed == {"zero_optimization": offload}
    file.write_text(text.replace("deepspeed: {}", "zero: {offload_optimizer: {device: cpu}}"))
    assert load_config(file).learner.deepspeed == {"zero_optimization": offload}
    file.write_text(text.replace("deepspeed: {}", "zero: {}"))
    assert load_config(file).learner.deepspeed == {}
    assert "rollout.silence_seconds is -1.0; expected a number above 0" in failure("rollout.deadline_seconds=-1")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.sede=1", "unknown key 'run.sede'; did you mean run.seed?"),
        ("rum.seed=1", "did you mean run?"),
        ("run.seed=one", "run.seed"),
        ("run.seed", "expected section.key=value"),
        ("run.steps=0", "run.steps is 0; expected a number above 0"),
        ("run.name=a/b", "run.name is 'a/b'"),
        ("run.resume=maybe", "run.resume"),
        ("sampling.top_p=1.5", "sampling.top_p is 1.5; expected in (0, 1]"),
        ("sampling.max_tokens=2048", "the model has 2048 positions"),
        ("pipeline.groups_per_step=63", "pipeline.groups_per_step (63) is not divisible"),
        ("learner.world_size=500", "an update has 32 groups of 8 responses for learner.world_size=500 ranks"),
        ("learner.lr_schedule=sudden", "learner.lr_schedule is 'sudden'; expected one of constant, "),
        ("learner.lr_schedule_kwargs={slope: 1}", "learner.lr_schedule=cosine_with_min_lr with"),
        ("objective.reference_kl=-1", "objective.reference_kl is -1.0; expected 0 or more"),
        ("pipeline.reused_groups_per_step=4", "set max_staleness >= 1 and behaviour=engine"),
        ("pipeline.max_gib=1e-6", "expected room for a step at least: set pipeline.max_gib="),
        ("objective.stale.min_ess=1.5", "objective.stale.min_ess is 1.5; expected a share of K, in [0, 1]"),
        (
            "objective.stale.max_drift=0",
            "objective.stale.max_drift is 0.0; expected a number of nats in (0, 1,000,000,000]",
        ),
        ("objective.stale.policy=forget", "objective.stale.policy"),
        ("objective.importance_cap=0.5", "objective.importance_cap is 0.5; expected in [1, 1,000,000,000]"),
        ("objective.divergence=kl", "objective.divergence is 'kl'; expected one of"),
        ("objective.target_temperature=hot", "objective.target_temperature is 'hot'"),
        ("objective.target_temperature=-1", "expected a number above 0"),
        ("objective.token_clip.kind=hard", "objective.token_clip.kind is 'hard'"),
        ("objective.token_clip.low=1.0", "objective.token_clip.low is 1.0; expected in (0, 1)"),
        ("objective.temperature_scale=0", "objective.temperature_scale is 0.0; expected a number above 0"),
        ("objective.schedule=[{from_step: 64}]", "objective.schedule[0].from_step is 64; expected above 0, where the"),
        ("objective.schedule=[{from_step: 9, divergence: kl}]", "objective.schedule[0].divergence is 'kl'; expected"),
        (
            "objective.schedule=[{from_step: 9}, {from_step: 9}]",
            "objective.schedule[1].from_step is 9; expected above 9",
        ),
        ("objective.ddof=8", "objective.ddof is 8; expected below sampling.group_size"),
        ("objective.divergence=nowhere:fn", "cannot be imported"),
        ("task.name=chess", "task.name is 'chess'"),
        ("task.verifier=chess", "task.verifier is 'chess'; expected one of boxed, boxed_format, countdown"),
        ("task.name=dataset", "task.path is null"),
        ("task.counts=[]", "expected a list of 3 and 4"),
        ("task.counts=[7]", "expected a list of 3 and 4"),
        ("model.path=/nowhere/model", "'/nowhere/model'"),
        ("rollout.kv_cache_gib=100000", "GiB of memory are free"),
        ("rollout.dtype=int4", "rollout.dtype is 'int4'"),
        ("evaluation.ks=[32]", "evaluation.ks is [32]"),
        ("learner.betas=[0.9]", "learner.betas is [0.9]"),
        ("learner.lr=null", "learner.lr is null; expected a number"),
        ("run.steps=5.7", "run.steps is 5.7; expected a whole number"),
        ("run.steps=0x1f", "run.steps is '0x1f'; expected a whole number"),
        ("run.seed=12:30:00", "run.seed is '12:30:00'; expected a whole number"),
        ("run.steps=on", "run.steps is 'on'; expected a whole number"),
        ("model.trust_remote_code=2", "model.trust_remote_code is 2; expected true or false"),
        ("run.resume=1", "run.resume is 1; expected one of never, auto"),
        ("run.name=null", "run.name is null; expected text"),
        ("run.dir=${nope}", "run.dir is '${nope}': Interpolation key 'nope' not found; expected a key as in"),
        ("run.dir=${oc.env:NOT_SET_ANYWHERE}", "Environment variable 'NOT_SET_ANYWHERE' not found"),
        ("run.dir=a ${b", "run.dir is text: "),
        ("run.dir=~nobody_at_all/runs", "run.dir is '~nobody_at_all/runs'"),
        ("evaluation.ks=1,4", "evaluation.ks is '1,4'; expected a list in brackets, each entry a whole number"),
        ("telemetry.trackers=wandb", "telemetry.trackers is 'wandb'; expected a list in brackets, each entry text"),
        ("objective.schedule.0.divergence=kl", "objective.schedule is set as a whole"),
        ("objective.schedule=[{form_step: 3}]", "unknown key 'objective.schedule[0].form_step'; expected one of from"),
        ("learner.lr_schedule_kwargs={min_lr_rate: .nan}", "learner.lr_schedule_kwargs.min_lr_rate is nan"),
        ("learner.deepspeed={a: 1, a: 2}", "key 'a' stands twice"),
        ("learner.deepspeed=3", "learner.deepspeed is 3; expected a mapping in braces"),
        ("learner.deepspeed=&a [*a]", "is not valid YAML after '='"),
        ("learner.deepspeed=[[[[", "is not valid YAML after '='"),
        ("run.steps=!!timestamp 2024-01-01", "is not valid YAML after '='"),
        ("run.steps=!!python/name:os.system x", "is not valid YAML after '='"),
        ("sampling.temperature=0.009", "sampling.temperature is 0.009; expected in [0.01, 100]"),
        ("evaluation.temperature=0.009", "evaluation.temperature is 0.009; expected 0, or in [0.01, 100]"),
        ("model.dtype=fp16", "model.dtype is 'float16'; expected float32 or bfloat16; float16 would need"),
        ("checkpoint.best=rewrad", "checkpoint.best is 'rewrad', which no step measures; did you mean reward?"),
        ("checkpoint.best=pass@3", "checkpoint.best is 'pass@3'; expected one of pass@1, pass@16 (evaluation.ks)"),
    ],
)
def test_bad_values_are_named_with_what_was_expected(override: str, expected: str, tmp_path: Path) -> None:
    message = failure(f"run.dir={tmp_path}", override)
    assert expected in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["20241130_1230", "1.10", "007", "0x1f", "1e3", "on", "no", "2024-11-30", "1_000"])
def test_text_stays_text_in_files_and_overrides(name: str, tmp_path: Path) -> None:
    assert load_config(QUICKSTART, [f"run.name={name}"]).run.name == name
    assert load_config(QUICKSTART, [f"run.name='{name}'"]).run.name == name
    file = tmp_path / "named.yaml"
    file.write_text(f"run: {{name: {name}, steps: 1}}\nsampling: {{max_tokens: 8}}\npipeline: {{groups_per_step: 2}}\n")
    config = load_config(file)
    assert config.run.name == name
    file.write_text(dump_config(config))
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("verifier.judge.rubric=Judge: is it right? #1", "Judge: is it right? #1"),
        ("verifier.judge.rubric=[a, b", "[a, b"),
        ('verifier.judge.rubric="two\\nlines"', "two\nlines"),
        ("verifier.judge.rubric='it''s'", "it's"),
        ("verifier.judge.rubric='null'", "null"),
        (r"verifier.judge.rubric=\${x} and \${y}", "${x} and ${y}"),
        ("verifier.judge.rubric=${run.name}-${sampling.group_size}", "quickstart-8"),
        ("task.path=a #1, b.jsonl", "a #1, b.jsonl"),
        ("task.path=", None),
        ("model.path=123", "123"),
        ("run.seed=010", 10),
        ("run.steps=1e3", 1000),
        ("run.steps=1_000", 1000),
        ("run.steps=5.0", 5),
        ("run.steps=!!int 5", 5),
        ("learner.lr='1e-6'", 1e-6),
        ("objective.target_temperature=1", 1),
        ("objective.target_temperature='0.5'", 0.5),
        ("model.dtype=torch.bfloat16", "bfloat16"),
        ("rollout.dtype=BF16", "bfloat16"),
        ("rollout.labels={a: 1.10, b: on}", {"a": "1.10", "b": "on"}),
        ("task.options={a: 010, b: 'on', c: 1e3, d: [yes, true], e: null}",
         {"a": 10, "b": "on", "c": 1000.0, "d": ["yes", True], "e": None}),
    ],
)  # fmt: skip
def test_values_are_taken_as_meant(override: str, expected: object, tmp_path: Path) -> None:
    config = load_config(QUICKSTART, [override])
    assert value_at(config, override.partition("=")[0]) == expected
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_an_interpolation_of_the_environment_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARTED_AT", "20241130_1230")
    monkeypatch.setenv("A_SEED", "007")
    config = load_config(QUICKSTART, ["run.name=${oc.env:STARTED_AT}", "run.seed=${oc.env:A_SEED}"])
    assert (config.run.name, config.run.seed) == ("20241130_1230", 7)


def test_a_mapping_is_replaced_as_a_whole_and_its_entries_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "zero.yaml"
    file.write_text(
        QUICKSTART.read_text().replace("learner:", "learner:\n  deepspeed: {offload_optimizer: {device: cpu}, b: 1}")
    )
    assert load_config(file).learner.deepspeed == {"offload_optimizer": {"device": "cpu"}, "b": 1}
    assert load_config(file, ["learner.deepspeed={}"]).learner.deepspeed == {}
    assert load_config(file, ["learner.deepspeed={c: 1}"]).learner.deepspeed == {"c": 1}
    pinned, b = "learner.deepspeed.offload_optimizer.pin_memory=true", "learner.deepspeed.b=2"
    changed = load_config(file, [pinned, b]).learner.deepspeed
    assert changed == {"offload_optimizer": {"device": "cpu", "pin_memory": True}, "b": 2}
    assert load_config(file, ["rollout.labels.lpo-ray/role=learner"]).rollout.labels == {"lpo-ray/role": "learner"}


def test_home_folders_are_expanded_in_every_key_that_names_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    overrides = [f"{key}=~/x" for key in PATHS]
    config = load_config(
        QUICKSTART, [*overrides, "learner.deepspeed={offload_param: {device: nvme, nvme_path: ~/ssd}}"]
    )
    assert {key: value_at(config, key) for key in PATHS} == dict.fromkeys(PATHS, "/home/somebody/x")
    assert config.learner.deepspeed["offload_param"]["nvme_path"] == "/home/somebody/ssd"


def test_a_group_of_one_response_cannot_be_dropped_for_equal_rewards() -> None:
    overrides = ("sampling.group_size=1", "evaluation.num_prompts=0")
    assert "the rewards of one response are always equal" in failure(*overrides, "pipeline.equal_rewards=drop")


def test_the_best_checkpoint_needs_an_evaluation() -> None:
    message = failure("evaluation.num_prompts=0", "checkpoint.best=pass@1", "evaluation.every=5")
    assert "checkpoint.best=pass@1 with evaluation.num_prompts=0" in message


def test_truncated_sampling_with_engine_behaviour_is_refused() -> None:
    message = failure("sampling.top_p=0.9", "objective.behaviour=engine")
    assert "sampling.top_p=0.9 cuts the support" in message


def test_an_importance_cap_with_engine_behaviour_is_refused() -> None:
    message = failure("objective.importance_cap=2", "objective.behaviour=engine")
    assert "objective.importance_cap is 2.0 with objective.behaviour=engine" in message


def test_the_points_of_the_grid_follow_the_schedule(tmp_path: Path) -> None:
    changes = (
        "[{from_step: 8, divergence: first_order}, {from_step: 16, temperature_scale: 0.5, target_temperature: one}]"
    )
    spec = make_spec(load_config(QUICKSTART, [f"run.dir={tmp_path}", f"objective.schedule={changes}"]))
    assert [objectives(spec).at(step).divergence for step in (0, 7, 8, 63)] == ["forward_kl"] * 2 + ["first_order"] * 2
    rules = [target_rules(spec).at(step) for step in (7, 8, 16)]
    assert [rule.anchored for rule in rules] == [True, False, False]
    assert [(rule.temperature, rule.scale) for rule in rules] == [("group_std", 1.0), ("group_std", 1.0), ("one", 0.5)]


def test_values_of_stale_groups_reach_targets_and_learner(tmp_path: Path) -> None:
    overrides = [f"run.dir={tmp_path}", "objective.behaviour=engine"]
    spec = make_spec(load_config(QUICKSTART, overrides))
    assert stale_rule(spec) == StaleRule("drop", 0.3, 0.18232)
    assert objectives(spec).at(0).importance_cap is None
    tempering = [*overrides, "objective.stale.policy=temper", "objective.stale.min_ess=0.5"]
    assert target_rules(make_spec(load_config(QUICKSTART, tempering))).at(0).stale == StaleRule("temper", 0.5, 0.18232)
    capped = make_spec(load_config(QUICKSTART, [overrides[0], "objective.importance_cap=2"]))
    assert objectives(capped).at(0).importance_cap == 2.0


def test_missing_files(tmp_path: Path) -> None:
    assert "does not exist; expected a YAML file" in failure(path=tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("run: [unclosed")
    assert "is not valid YAML" in failure(path=broken)
    broken.write_text("run:\n  name: x\n")
    assert "does not set pipeline.groups_per_step, run.steps, sampling.max_tokens" in failure(path=broken)


def test_a_model_folder_without_a_model_is_named(tmp_path: Path) -> None:
    assert "has no config.json" in failure(f"model.path={tmp_path}")
    (tmp_path / "config.json").write_text("{half")
    assert "is not JSON" in failure(f"model.path={tmp_path}")


DATASET = ("task.name=dataset", "task.verifier=boxed", "evaluation.num_prompts=1")


def dataset_failure(
    tiny_policy: Path, folder: Path, train: str, heldout: str = '{"prompt": "h", "answer": "1"}'
) -> str:
    (folder / "train.jsonl").write_text(train)
    (folder / "heldout.jsonl").write_text(heldout)
    paths = [f"task.path={folder}/train.jsonl", f"task.heldout_path={folder}/heldout.jsonl"]
    return failure(*DATASET, *paths, f"model.path={tiny_policy}", f"run.dir={folder}/runs")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("", "has no rows"),
        ('{"prompt": "a"}', "train.jsonl, row 1 has no answer"),
        ('{"prompt": "a", "answer": "1"}\nnot json', "train.jsonl, row 2 is not JSON"),
        ("[1]", "row 1 is '[1]'; expected a JSON object"),
        ('{"prompt": "  ", "answer": "1"}', "no row of"),
        ('{"prompt": "h", "answer": "1"}', "must not overlap"),
        ('{"prompt": "' + "x" * 3000 + '", "answer": "1"}', "longer than 2024 tokens"),
    ],
)
def test_malformed_datasets_name_file_and_row(rows: str, expected: str, tiny_policy: Path, tmp_path: Path) -> None:
    assert expected in dataset_failure(tiny_policy, tmp_path, rows)


def test_a_dataset_that_is_too_small_or_missing(tiny_policy: Path, tmp_path: Path) -> None:
    good = '{"prompt": "a", "answer": "1"}'
    (tmp_path / "train.jsonl").write_text(good)
    (tmp_path / "heldout.jsonl").write_text('{"prompt": "h", "answer": "1"}')
    paths = [f"task.path={tmp_path}/train.jsonl", f"task.heldout_path={tmp_path}/heldout.jsonl"]
    base = ("task.name=dataset", "task.verifier=boxed", f"model.path={tiny_policy}", f"run.dir={tmp_path}/runs")
    assert "evaluation.num_prompts is 256, but there are 1 held-out" in failure(*base, *paths)
    assert "which does not exist" in failure(*base, "task.path=/nowhere.jsonl", "task.heldout_path=/nowhere.jsonl")
    assert "task.heldout_path is null" in failure(*base, paths[0])
    assert "task.path is null" in failure(*base)


def test_a_dataset_needs_a_verifier_to_be_named(tiny_policy: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "answer": "1"}')
    message = failure("task.name=dataset", f"task.path={tmp_path}/train.jsonl", "evaluation.num_prompts=0")
    assert "task.name=dataset has no verifier of its own" in message


def test_numbers_of_a_plan(tmp_path: Path) -> None:
    spec = make_spec(load_config(QUICKSTART, [f"run.dir={tmp_path}", "run.steps=11", "learner.lr=1e-3"]))
    found = numbers(spec)
    assert found["responses per step"] == 512
    assert found["groups per update and rank"] == 16
    assert found["optimiser updates in the run"] == 22
    assert spec.learning_rate(0) == pytest.approx(1e-3)
    assert spec.learning_rate(10) == pytest.approx(1e-4 + 0.9e-3 * (1 + math.cos(math.pi * 10 / 11)) / 2)
    assert spec.learning_rate(5) == pytest.approx(1e-4 + 0.9e-3 * (1 + math.cos(math.pi * 5 / 11)) / 2)
