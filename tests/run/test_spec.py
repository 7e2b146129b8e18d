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
from lpo_ray.run.settings import evaluation_settings, sampling
from lpo_ray.run.spec import RunSpec, make_spec

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
