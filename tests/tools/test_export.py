"""What is exported speaks and ends as the run did, for whoever loads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lpo_ray.config.load import load_config
from lpo_ray.errors import ConfigError
from lpo_ray.policy.adapter_files import is_adapter, read_settings, save_adapter
from lpo_ray.policy.loading import load_policy
from lpo_ray.policy.lora import AdapterSettings
from lpo_ray.policy.lora_layers import inject
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


async def adapter_run(tmp_path: Path, model: Path) -> tuple[Path, AdapterSettings]:
    """A run with a checkpoint of an adapter that is not zero, of the model in a folder."""
    settings, saved = AdapterSettings(2, 4, ("q_proj", "down_proj")), tmp_path / "saved"
    tensors = {name: torch.randn_like(p) for name, p in inject(load_policy(str(model), "float32"), settings).items()}
    save_adapter(saved, settings, str(model), tensors)
    Tokenizer.load(str(model)).save(saved)
    run = tmp_path / "run"
    rules = CheckpointRules(run / "checkpoints", every=1, keep=1, best=None)
    await save_checkpoint(rules, CheckpointState(1, "digest", 1, score=None), Saving(saved))
    spec = make_spec(load_config(QUICKSTART, [f"model.path={model}", f"run.dir={tmp_path}", "run.name=run"]))
    write_prompting(spec)
    shutil.copy(QUICKSTART, run / "config.yaml")
    return run, settings


async def test_an_adapter_is_exported_as_it_is_or_merged(tmp_path: Path, tiny_policy: Path) -> None:
    run, settings = await adapter_run(tmp_path, tiny_policy)
    export(run, tmp_path / "adapter", as_adapter=True)
    export(run, tmp_path / "merged")
    found, base = read_settings(str(tmp_path / "adapter"))
    assert (found.rank, found.alpha, base) == (settings.rank, settings.alpha, str(tiny_policy))
    assert f"{tiny_policy}" in (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert not is_adapter(tmp_path / "merged")
    ids = torch.arange(1, 12)[None]
    plain, merged, beside = (
        model.from_pretrained(folder)(ids).logits
        for model, folder in (
            (AutoModelForCausalLM, tiny_policy),
            (AutoModelForCausalLM, tmp_path / "merged"),
            (AutoPeftModelForCausalLM, tmp_path / "adapter"),
        )
    )
    torch.testing.assert_close(merged, beside, rtol=1e-4, atol=1e-4)
    assert float((merged - plain).detach().abs().max()) > 1e-2


async def test_a_run_without_an_adapter_has_none_to_export_nor_is_one_merged_without_its_model(
    tmp_path: Path, tiny_policy: Path
) -> None:
    await exported(tmp_path, CHATML)
    with pytest.raises(ConfigError, match="trained all weights of its policy"):
        export(tmp_path / "run", tmp_path / "none", as_adapter=True)
    assert not (tmp_path / "none").exists()
    gone = tmp_path / "b" / "model"
    shutil.copytree(tiny_policy, gone)
    run, _ = await adapter_run(tmp_path / "b", gone)
    shutil.rmtree(gone)
    with pytest.raises(ConfigError, match="cannot be merged: its model"):
        export(run, tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir() if "none" in path.name] == []
