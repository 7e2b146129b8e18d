"""Arithmetic with a calculator: a product of two numbers and a sum, which a small model cannot do in its head."""

from __future__ import annotations

from typing_extensions import override

from lpo_ray.config.schema import TaskConfig
from lpo_ray.records import Prompt
from lpo_ray.tasks.sources.arithmetic_problems import generate
from lpo_ray.tasks.sources.generated import GeneratedSource, encoded
from lpo_ray.tasks.sources.source import PromptEncoder, Split
from lpo_ray.tasks.task import SourceContext, Task, known_only


class ArithmeticSource(GeneratedSource):
    """Endless training problems of one seed (or ``num_train`` of them, cycled), and the held-out problems."""

    def __init__(
        self, *, seed: int, template: str, verifier: str, encoder: PromptEncoder, num_train: int | None
    ) -> None:
        super().__init__(seed, num_train)
        self._template, self._verifier, self._encoder = template, verifier, encoder

    @override
    def _prompt(self, prompt_id: str, seed: int, split: Split, problem: int) -> Prompt:
        made = generate(seed, problem, split=split)
        text = made.plain if self._template == "plain" else made.chat
        token_ids = encoded(self._encoder, text, "arithmetic_tool", prompt_id, "sampling.max_tokens")
        return Prompt(prompt_id, token_ids, made.answer, self._verifier, {"prompt": text})


def _make(task: TaskConfig, given: SourceContext) -> ArithmeticSource:
    return ArithmeticSource(
        seed=given.seed,
        template=task.template,
        verifier=given.verifier,
        encoder=given.encoder,
        num_train=task.num_train,
    )


def _check(task: TaskConfig, num_heldout: int) -> None:
    known_only(task.options, {}, "arithmetic_tool")


ARITHMETIC_TOOL = Task(
    name="arithmetic_tool",
    about="calculate a*b+c with the tool calculator; reward 1 for the right number, else 0",
    verifier="exact",
    make=_make,
    check=_check,
    recommended={"task.template": "chat", "sampling.max_tokens": 128, "sampling.max_turns": 4},
    tools=("calculator",),
)
