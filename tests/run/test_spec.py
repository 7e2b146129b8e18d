"""What follows from a configuration and its model: the tokens that end a response."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lpo_ray.config import load_config
from lpo_ray.errors import ConfigError
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.run.numbers import render
from lpo_ray.run.preflight import check_sandbox
from lpo_ray.run.settings import evaluation_settings, sampling
from lpo_ray.run.spec import RunSpec, make_spec
from lpo_ray.tools.plan.problems import unmet_here

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
TURNS = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<bos>\n{% endfor %}"
BOS = 1


@pytest.fixture
def base_model(tiny_policy: Path, tmp_path: Path) -> Path:
    """A model whose end token is <eos> and whose chat template ends turns with <bos>."""
    folder = Path(shutil.copytree(tiny_policy, tmp_path / "base"))
    tokenizer = Tokenizer.load(str(folder))
    tokenizer._tokenizer.chat_template = TURNS
    tokenizer.save(folder)
    return folder


def spec_of(model: Path, *overrides: str) -> RunSpec:
    (model / "train.jsonl").write_text(json.dumps({"prompt": "a", "answer": "1"}))
    chats = [{"prompt": [{"role": "user", "content": "b"}], "answer": "1"}]
    (model / "chats.jsonl").write_text("".join(json.dumps(row) for row in chats))
    data = ("task.name=dataset", "task.verifier=boxed", f"task.path={model}/train.jsonl", "evaluation.num_prompts=0")
    return make_spec(load_config(QUICKSTART, [f"model.path={model}", f"run.dir={model}/runs", *data, *overrides]))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("task.template=chat",), (BOS,)),
        (("task.template=plain",), ()),
        (("task.template=chat", "sampling.stop_token_ids=[7, 1]"), (7, BOS)),
        (("task.template=plain", "sampling.stop_token_ids=[7]"), (7,)),
    ],
)
def test_a_base_models_turn_ends_where_its_template_ends_it(
    overrides: tuple[str, ...], expected: tuple[int, ...], base_model: Path
) -> None:
    spec = spec_of(base_model, *overrides)
    assert spec.stop_token_ids == sampling(spec).stop_token_ids == expected
    assert evaluation_settings(spec).sampling.stop_token_ids == expected
    assert ("a response also ends at" in render(spec)) == (BOS in expected)
    assert spec.end_of_turn == ("<bos> (1)" if BOS in expected else "")


def test_an_engine_has_room_for_the_longest_prompt_of_the_data_and_a_response(base_model: Path) -> None:
    """Of both files, and of those prompts only that are short enough; where nobody knows, for the whole context."""
    config = json.loads((base_model / "config.json").read_text())
    (base_model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1000}))
    held_out = [{"prompt": "1" * size, "answer": "1"} for size in (80, 150, 999)]
    (base_model / "heldout.jsonl").write_text("\n".join(map(json.dumps, held_out)))
    both = f"task.heldout_path={base_model}/heldout.jsonl"
    assert spec_of(base_model).max_model_len == 64  # 1 + 24 tokens, rounded up
    assert spec_of(base_model, both).max_model_len == 192  # 150 + 24
    assert (
        spec_of(base_model, both, "sampling.max_tokens=870").max_model_len == 960
    )  # 80 + 870: those of 150 are left out
    assert spec_of(base_model, both, "sampling.max_tokens=840").max_model_len == 1000  # no more than the model has
    assert spec_of(base_model, both).with_room_for(500).max_model_len == 512
    generated = ("task.name=countdown", "task.path=null", "task.verifier=null")
    assert spec_of(base_model, *generated).max_model_len == 1000
    set_ = spec_of(base_model, both, "rollout.max_model_len=160")
    assert (set_.max_model_len, set_.context, set_.max_prompt_tokens) == (160, 160, 136)
    assert set_.with_room_for(500).max_model_len == 160
    with pytest.raises(ConfigError, match=r"rollout\.max_model_len is 1001, but the model has 1000 positions"):
        spec_of(base_model, "rollout.max_model_len=1001")
    with pytest.raises(ConfigError, match=r"sampling\.max_tokens is 24, but .* \(rollout\.max_model_len"):
        spec_of(base_model, "rollout.max_model_len=20")


def test_an_engine_whose_parts_do_not_divide_the_model_is_refused(base_model: Path) -> None:
    with pytest.raises(ConfigError, match="does not divide the model's"):
        spec_of(base_model, "rollout.tensor_parallel_size=7")


def test_engines_that_are_less_precise_need_a_correction(base_model: Path) -> None:
    less = "rollout.engine_args={kv_cache_dtype: fp8, quantization: fp8_per_tensor}"
    with pytest.raises(ConfigError, match=r"has quantization=fp8_per_tensor, kv_cache_dtype=fp8 .*behaviour=engine"):
        spec_of(base_model, less)
    for correction in ("objective.behaviour=engine", "objective.importance_cap=2"):
        assert any(
            "differ from it by more than rounding" in text for text in spec_of(base_model, less, correction).warnings
        )
    assert not spec_of(base_model, "rollout.engine_args={kv_cache_dtype: auto}").warnings


def test_prompts_of_messages_have_turns_whatever_the_template_setting(base_model: Path) -> None:
    spec = spec_of(base_model, "task.template=plain", f"task.path={base_model}/chats.jsonl")
    assert spec.stop_token_ids == (BOS,)


def test_a_model_whose_end_token_ends_its_turns_needs_no_other(base_model: Path) -> None:
    tokenizer = Tokenizer.load(str(base_model))
    tokenizer._tokenizer.chat_template = TURNS.replace("<bos>", "<eos>")
    tokenizer.save(base_model)
    assert spec_of(base_model, "task.template=chat").stop_token_ids == ()


def test_a_stop_token_beyond_the_vocabulary_is_refused(base_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.stop_token_ids has 5000; expected ids below"):
        spec_of(base_model, "sampling.stop_token_ids=[5000]")


@pytest.mark.parametrize("kind", ["auto", "bubblewrap", "rlimit"])
def test_programs_that_would_not_see_their_packages_are_refused_at_the_start(
    base_model: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By train, its dry run and the plan alike, where the verifier is on this machine."""
    monkeypatch.setattr("lpo_ray.run.preflight.trouble_with", lambda kind: f"{kind} cannot read /root/env (mode 0700)")
    chosen = f"verifier.sandbox.kind={kind}"
    found = r"unit_tests with verifier.sandbox.kind=.* does not work here: \w+ cannot read /root/env \(mode 0700\)"
    with pytest.raises(ConfigError, match=found):
        spec_of(base_model, "task.verifier=unit_tests", chosen)
    config = load_config(QUICKSTART, ["task.verifier=unit_tests", chosen])
    assert any("cannot read /root/env" in note for note in unmet_here(config, "0.5*unit_tests + 0.5*boxed"))
    assert not any("cannot read" in note for note in unmet_here(config, "boxed"))
    check_sandbox("boxed", config)
    check_sandbox("unit_tests", load_config(QUICKSTART, [chosen, "cluster.address=ray://head:10001"]))


def test_programs_run_here() -> None:
    check_sandbox("unit_tests", load_config(QUICKSTART, []))
