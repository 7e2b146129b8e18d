"""Arithmetic with a calculator: a product of two numbers and a sum, which a small model cannot do in its head."""

from __future__ import annotations

from collections.abc import Sequence

from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import DataError
from lpo_ray.records import Prompt
from lpo_ray.tasks.sources.arithmetic_problems import generate
from lpo_ray.tasks.sources.source import HELDOUT_SEED, PromptEncoder, Split, cycled
from lpo_ray.tasks.task import SourceContext, Task, known_only


class ArithmeticSource:
    """Endless training problems of one seed (or ``num_train`` of them, cycled), and the held-out problems."""

    def __init__(
        self, *, seed: int, template: str, verifier: str, encoder: PromptEncoder, num_train: int | None
    ) -> None:
        self._seed, self._template, self._verifier = seed, template, verifier
        self._encoder, self._num_train = encoder, num_train

    def train(self, index: int) -> Prompt:
        """Make problem ``index`` of this seed's training split."""
        problem = cycled(self._seed, index, self._num_train)
        return self._prompt(f"train-{index:08d}", self._seed, problem, "train")

    def heldout(self, count: int) -> Sequence[Prompt]:
        """Make the first ``count`` problems of the held-out split; the same for every seed."""
        return [self._prompt(f"heldout-{number:08d}", HELDOUT_SEED, number, "heldout") for number in range(count)]

    def _prompt(self, prompt_id: str, seed: int, index: int, split: Split) -> Prompt:
        problem = generate(seed, index, split=split)
        text = problem.plain if self._template == "plain" else problem.chat
        token_ids = self._encoder.encode(text)
        if len(token_ids) > self._encoder.max_tokens:
            raise DataError(
                f"arithmetic_tool prompt {prompt_id} has {len(token_ids)} tokens, but the model's context leaves room "
                f"for {self._encoder.max_tokens}; lower sampling.max_tokens"
            )
        return Prompt(prompt_id, token_ids, problem.answer, self._verifier, {"prompt": text})


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
