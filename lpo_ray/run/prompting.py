"""How a run speaks to its policy: ``prompting.json`` keeps it for exports, when the files that said so may be gone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lpo_ray.common.files import write_json
from lpo_ray.errors import ConfigError
from lpo_ray.run.spec import RunSpec
from lpo_ray.tasks.prompt_form import form_of

FILE = "prompting.json"


@dataclass(frozen=True, slots=True)
class Prompting:
    """Form of a run's prompts and ends of its responses, for whoever serves the policy.

    Example: ``Prompting("{% for m in messages %}...", (151645,))``
    """

    chat_template: str | None = None
    """text of task.chat_template; None: the tokenizer's own"""
    stop_token_ids: tuple[int, ...] = ()
    """tokens that end a response beside the model's own"""


def write_prompting(spec: RunSpec) -> None:
    """Write prompting.json of a run's folder."""
    template = form_of(spec.config.task).style.template
    write_json(spec.run_dir / FILE, asdict(Prompting(template, spec.stop_token_ids)))


def read_prompting(run_dir: Path) -> Prompting:
    """Read prompting.json of a run's folder; nothing is special where an older version began it. Raises ConfigError."""
    path = run_dir / FILE
    if not path.is_file():
        return Prompting()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Prompting(found["chat_template"], tuple(map(int, found["stop_token_ids"])))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged ({type(error).__name__}: {error}); expected it as it was written. Remove it to export "
            "with the model's own chat template and end tokens"
        ) from error
