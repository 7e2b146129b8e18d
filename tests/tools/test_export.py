"""What is exported speaks and ends as the run did, for whoever loads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from lpo_ray.config.load import load_config
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.run.prompting import FILE, read_prompting, write_prompting
from lpo_ray.run.spec import make_spec
from lpo_ray.tools.export import export
from lpo_ray.training.checkpoint import CheckpointRules, CheckpointState, save_checkpoint
from tests.support.chat_tokenizers import CHATML, byte_tokenizer
from tests.support.dataset_files import write_jsonl
from tests.support.fakes import FakeComponents
from tests.support.model_folders import llama, write_model

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
OWN = CHATML.replace("<|im_start|>", "<|im_start|>my ")
TURN = [{"role": "user", "content": "2+3="}]


class Saving(FakeComponents):
    """Saves the folder ``source`` as its policy."""

    def __init__(self, source: Path) -> None:
        super().__init__()
        self._source = source

    async def save(self, folder: Path) -> None:
        shutil.copytree(self._source, folder / "policy")
        (folder / "shards").mkdir()


async def exported(tmp_path: Path, template: str | None, *overrides: str, generation: dict | None = None) -> Path:
    """Export the run of a model whose tokenizer has ``template``; its prompts are conversations."""
    model = write_model(tmp_path / "model", llama(vocab_size=320, eos_token_id=256), generation)
    byte_tokenizer(template).save(model)
    data = write_jsonl(tmp_path / "train.jsonl", [{"prompt": TURN, "answer": "5"}])
    spec = make_spec(
        load_config(
            QUICKSTART,
            [f"model.path={model}", f"run.dir={tmp_path}", "run.name=run", "task.name=dataset", f"task.path={data}",
             "task.verifier=exact", "evaluation.num_prompts=0", "sampling.max_tokens=64", *overrides],
        )
    )  # fmt: skip
    rules = CheckpointRules(spec.run_dir / "checkpoints", every=1, keep=1, best=None)
    await save_checkpoint(rules, CheckpointState(1, "digest", 1, score=None), Saving(model))
    write_prompting(spec)
    assert export(spec.run_dir, tmp_path / "out") == 1
    return tmp_path / "out"


@pytest.mark.parametrize("generation", [None, {"eos_token_id": 256, "temperature": 0.6}, {"eos_token_id": [256, 7]}])
async def test_the_end_of_turn_and_stop_tokens_end_a_response_elsewhere(
    tmp_path: Path, generation: dict | None
) -> None:
    out = await exported(tmp_path, CHATML, "sampling.stop_token_ids=[65]", generation=generation)
    ends = [256, *([7] if generation and isinstance(generation["eos_token_id"], list) else []), 65, 258]
    assert GenerationConfig.from_pretrained(out).eos_token_id == ends
    if generation and "temperature" in generation:
        assert GenerationConfig.from_pretrained(out).temperature == 0.6


async def test_an_own_chat_template_goes_along_though_its_file_is_gone(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(OWN)
    out = await exported(tmp_path, CHATML, f"task.chat_template={tmp_path}/mine.jinja")
    (tmp_path / "mine.jinja").unlink()
    assert Tokenizer.load(str(out)).render(TURN).startswith("<|im_start|>my user")
    assert AutoTokenizer.from_pretrained(out).chat_template == OWN
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == OWN, "older ones read this"


async def test_of_a_run_without_either_nothing_is_changed(tmp_path: Path) -> None:
    template = CHATML.replace("<|im_end|>", "<|endoftext|>")
    out = await exported(tmp_path, template)
    assert GenerationConfig.from_pretrained(out).eos_token_id == 256
    assert Tokenizer.load(str(out)).render(TURN) == byte_tokenizer(
        CHATML.replace("<|im_end|>", "<|endoftext|>")
    ).render(TURN)


def test_a_folder_of_an_older_version_or_a_damaged_one(tmp_path: Path) -> None:
    assert read_prompting(tmp_path).stop_token_ids == ()
    (tmp_path / FILE).write_text('{"stop_token_ids": "x"}')
    with pytest.raises(Exception, match=r"prompting.json is damaged"):
        read_prompting(tmp_path)
