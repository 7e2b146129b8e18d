"""One offline evaluation in its folder: evaluation.jsonl while it runs, then results.json and picture.png."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lpo_ray.common.files import write_json
from lpo_ray.errors import ConfigError
from lpo_ray.evaluation import score_prompts
from lpo_ray.evaluation.breakdown import groups_of
from lpo_ray.evaluation.picture import draw
from lpo_ray.evaluation.report import Report, make_report
from lpo_ray.evaluation.results import PromptResult
from lpo_ray.evaluation.sampling import all_lost
from lpo_ray.evaluation.store import ResultStore
from lpo_ray.interfaces import RolloutEngine, Verifier
from lpo_ray.policy.loading import folder_identity, identity
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import Prompt, ScoredGroup
from lpo_ray.run.evaluator import EvaluationSettings
from lpo_ray.run.settings import evaluation_settings
from lpo_ray.run.spec import RunSpec
from lpo_ray.tools.evaluate.target import EvaluationRequest
from lpo_ray.verifiers.answers import read_as

DECIDES_A_VERDICT = ("http", "judge", "sandbox")
"""of the section verifier"""
OF_TURNS = ("max_turns", "max_conversation_tokens")
"""of a Sampling, that a single answer does not have"""


@dataclass(frozen=True, slots=True)
class EvaluationRun:
    """Request whose prompts are known and whose store is open; nothing expensive has been started."""

    request: EvaluationRequest
    settings: EvaluationSettings
    verifier: str
    tokenizer: Tokenizer
    prompts: list[Prompt]
    store: ResultStore
    column: tuple[str, dict[str, str]] | None
    """--by, and each prompt's group"""

    @property
    def missing(self) -> list[Prompt]:
        """Prompts that have no result yet."""
        return [prompt for prompt in self.prompts if not self.store.is_done(prompt.prompt_id)]

    async def score(
        self, rollout: RolloutEngine, verifier: Verifier, on_progress: Callable[[int, int], None]
    ) -> dict[str, str]:
        """Sample and score what is missing, each result on disk at once. Returns why each lost prompt was lost."""
        prompts = {prompt.prompt_id: prompt for prompt in self.missing}

        def keep(scored: ScoredGroup) -> None:
            given = prompts[scored.group.prompt.prompt_id]
            self.store.append(PromptResult.of(scored, self.tokenizer, given))

        return await score_prompts(
            rollout, verifier, self.missing, self.settings.sampling,
            max_in_flight=self.settings.max_in_flight, on_scored=keep, on_progress=on_progress,
        )  # fmt: skip

    def report(self, lost: dict[str, str]) -> Report:
        """Report on all results there are, and write it to the folder. Raises TooManyLost when there are none."""
        if not self.store.results:
            raise all_lost(lost)
        config, sampling = self.request.config, self.settings.sampling
        about = {
            "model": self.request.model,
            "model_path": config.model.path,
            "task": self.request.name,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "pass_reward": config.evaluation.pass_reward,
            "verifier": self.verifier,
            "answers_read_as": read_as(self.verifier),
        }
        report = make_report(
            self.store.results,
            title=f"{self.request.model} on {self.request.name} at temperature {sampling.temperature:g}",
            about=about,
            pass_reward=config.evaluation.pass_reward,
            lost=lost,
            column=self.column,
        )
        write_json(self.request.folder / "results.json", report.to_json())
        draw(report, self.request.folder / "picture.png")
        return report


@contextlib.contextmanager
def opened(
    request: EvaluationRequest, spec: RunSpec, model_path: str, by: str | None, *, fresh: bool
) -> Iterator[EvaluationRun]:
    """Open the evaluation of ``request``, broken down ``by`` a column of the data; ``fresh`` drops earlier results.
    Raises ConfigError, also when those are of another model, sampling or prompt.
    """
    config = spec.config
    if not config.evaluation.num_prompts:
        raise ConfigError("evaluation.num_prompts is 0; expected the number of held-out prompts to evaluate on")
    tokenizer = spec.tokenizer(model_path)
    prompts = list(spec.source(tokenizer).heldout(config.evaluation.num_prompts))
    settings = evaluation_settings(spec)
    column = None if by is None else (by, groups_of(prompts, by))
    verifier = asdict(config.verifier)
    of_what = {
        "model": identity(model_path, trust_remote_code=config.model.trust_remote_code),
        **({} if config.model.lora.path is None else {"adapter": folder_identity(Path(config.model.lora.path))}),
        "dtype": config.rollout.dtype,
        "sampling": {name: value for name, value in asdict(settings.sampling).items() if name not in OF_TURNS},
        **(_conversations(spec) if spec.has_turns else {}),
        "verifier": {"name": spec.verifier, **{key: _plain(verifier[key]) for key in DECIDES_A_VERDICT}},
    }
    with ResultStore(request.folder, of_what, prompts, fresh=fresh) as store:
        yield EvaluationRun(request, settings, spec.verifier, tokenizer, prompts, store, column)


def _conversations(spec: RunSpec) -> dict[str, object]:
    task, sampling = spec.config.task, spec.config.sampling
    environment = {"name": task.environment, "tools": list(task.tools), "tool_parser": task.tool_parser}
    return {
        "environment": environment | ({"agent": task.agent} if spec.has_agent else {}),
        "limits": {name: getattr(sampling, name) for name in OF_TURNS},
    }


def _plain(section: dict[str, object]) -> dict[str, object]:
    return {key: getattr(value, "value", value) for key, value in section.items()}
