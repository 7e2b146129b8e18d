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
from lpo_ray.errors import ConfigError
from lpo_ray.policy.saving import add_end_tokens, make_readable, write_template
from lpo_ray.run.prompting import read_prompting
from lpo_ray.training import checkpoint


def export(run_dir: Path, target: Path, step: int | None = None) -> int:
    """Copy the newest checkpoint's policy (or that of ``step``) to ``target``, whole or not at all; returns the step.

    The folder needs nothing of this project: transformers 4 and 5 and ``vllm serve`` load it.
    """
    saved = checkpoint.chosen(run_dir, step)
    step = checkpoint.step_of(saved)
    if target.exists():
        raise ConfigError(f"{target} exists; give a folder that does not, so that nothing is overwritten")
    checkpoint.verify(saved, str(saved / "policy"))
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(saved / "policy", partial)
        prompting = read_prompting(run_dir)
        if prompting.chat_template is not None:
            write_template(partial, prompting.chat_template)
        add_end_tokens(partial, prompting.stop_token_ids)
        make_readable(partial)
        write_text(partial / "README.md", _card(run_dir, step))
        publish_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return step


def _card(run_dir: Path, step: int) -> str:
    config = run_dir / "config.yaml"
    evaluations = run_dir / "evaluations.json"
    scores = json.loads(evaluations.read_text(encoding="utf-8")) if evaluations.exists() else {}
    return (
        Environment(loader=PackageLoader("lpo_ray", "."), autoescape=False, trim_blocks=True)
        .get_template("tools/model_card.md.j2")
        .render(
            run=run_dir.name,
            step=step,
            scores=sorted((int(at), value) for at, value in scores.items()),
            config=config.read_text(encoding="utf-8") if config.exists() else "",
        )
    )
