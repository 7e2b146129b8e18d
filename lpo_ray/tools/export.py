"""Export of a run's policy to a plain Hugging Face folder: safetensors, tokenizer, generation config, model card.

Who serves it speaks to the policy as the run did: the chat template is that of task.chat_template, and what ended a
response beside the model's own end tokens is in the generation config.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from jinja2 import Environment, PackageLoader

from lpo_ray.common.files import publish_folder, write_text
from lpo_ray.config.load import load_config
from lpo_ray.errors import ConfigError
from lpo_ray.policy.adapter_files import is_adapter, read_settings
from lpo_ray.policy.loading import load_policy
from lpo_ray.policy.saving import add_end_tokens, make_readable, save_model, write_template
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.run.prompting import read_prompting
from lpo_ray.training import checkpoint


def export(run_dir: Path, target: Path, step: int | None = None, *, as_adapter: bool = False) -> int:
    """Copy the newest checkpoint's policy (or that of ``step``) to ``target``, whole or not at all; returns the step.

    The folder needs nothing of this project: transformers 4 and 5 and ``vllm serve`` load it. An adapter is merged into
    its model, or with ``as_adapter`` stays a folder for PEFT. Raises ConfigError.
    """
    saved = checkpoint.chosen(run_dir, step)
    step = checkpoint.step_of(saved)
    if target.exists():
        raise ConfigError(f"{target} exists; give a folder that does not, so that nothing is overwritten")
    policy = saved / "policy"
    checkpoint.verify(saved, str(policy))
    if as_adapter and not is_adapter(policy):
        raise ConfigError(f"--adapter, but {run_dir} trained all weights of its policy; expected --merged, or neither")
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if is_adapter(policy) and not as_adapter:
            _merge(run_dir, policy, partial)
        else:
            shutil.copytree(policy, partial)
        prompting = read_prompting(run_dir)
        if prompting.chat_template is not None:
            write_template(partial, prompting.chat_template)
        if not as_adapter:
            add_end_tokens(partial, prompting.stop_token_ids)
        make_readable(partial)
        write_text(partial / "README.md", _card(run_dir, step, read_settings(str(policy))[1] if as_adapter else None))
        publish_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return step


def _merge(run_dir: Path, policy: Path, target: Path) -> None:
    """Write the model of an adapter with the adapter in its weights, in the dtype of the run, and its tokenizer."""
    from lpo_ray.policy.lora_layers import inject, merge  # PEFT, which takes a second

    settings, base = read_settings(str(policy))
    config = load_config(run_dir / "config.yaml")
    try:
        model = load_policy(base, config.model.dtype, trust_remote_code=config.model.trust_remote_code)
    except ConfigError as error:
        raise ConfigError(
            f"the adapter in {policy} cannot be merged: its model, {base!r}, is not as it was ({error}); expected it "
            "there, or --adapter"
        ) from error
    inject(model, settings)
    merge(model)
    save_model(model, target)
    Tokenizer.load(str(policy), trust_remote_code=config.model.trust_remote_code).save(target)


def _card(run_dir: Path, step: int, base: str | None) -> str:
    config = run_dir / "config.yaml"
    evaluations = run_dir / "evaluations.json"
    scores = json.loads(evaluations.read_text(encoding="utf-8")) if evaluations.exists() else {}
    return (
        Environment(loader=PackageLoader("lpo_ray", "."), autoescape=False, trim_blocks=True)
        .get_template("tools/model_card.md.j2")
        .render(
            run=run_dir.name,
            base=base,
            step=step,
            scores=sorted((int(at), value) for at, value in scores.items()),
            config=config.read_text(encoding="utf-8") if config.exists() else "",
        )
    )
