"""The table of tasks, and token reversal."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from lpo_ray.config import load_config
from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import ConfigError, DataError
from lpo_ray.run.spec import make_spec
from lpo_ray.tasks.base_policy import character_tokenizer
from lpo_ray.tasks.dataset import needs_answer
from lpo_ray.tasks.sources.source import PromptEncoder, split_of
from lpo_ray.tasks.table import TASKS, check_task, task_named, verifier_of
from lpo_ray.tasks.task import SourceContext, Task
from lpo_ray.tasks.token_reversal import HELDOUT_SHARE, Settings, TokenReversalSource
from lpo_ray.verifiers.table import VERIFIERS
from lpo_ray.verifiers.token_reversal import token_reversal, token_reversal_share

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", TASKS)
def test_every_row_is_named_and_says_what_it_is(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert task.about
    assert (task.verifier is None) == (name == "dataset")
    config = load_config(CONFIGS / "quickstart.yaml", ["task.name=countdown"])
    for key in task.recommended:
        section, _, field = key.partition(".")
        assert hasattr(getattr(config, section), field), key


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chess", "expected one of arithmetic_tool, code, countdown, countdown_turns, dataset, geometry, math"),
        ("chess:blitz", "cannot be imported"),
        ("countdown:hard", "task.name is 'countdown:hard'; expected countdown"),
        ("reasoning_gym", "expected reasoning_gym:NAME"),
        ("tests.tasks.test_table:not_a_task", "returned a str; expected a Task"),
    ],
)
def test_unknown_tasks_name_the_known_ones(name: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        task_named(name)
    assert f"task.name is {name!r}" in str(caught.value)
    assert expected in str(caught.value)


def not_a_task() -> str:
    return "no"


def a_task() -> Task:
    return Task("mine", "of a test", "boxed", lambda task, given: given)


def test_a_task_from_outside() -> None:
    task = TaskConfig(name="tests.tasks.test_table:a_task")
    check_task(task, 0)
    assert verifier_of(task) == "boxed"
    assert verifier_of(TaskConfig(name="countdown")) == "countdown"
    assert verifier_of(TaskConfig(name="math", verifier="boxed")) == "boxed"


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            TaskConfig(options={"length": 3}),
            "task.options has length, which task.name=countdown has not; expected examples: solved problems shown",
        ),
        (TaskConfig(template="chat", options={"examples": 3}), "task.options.examples is 3; expected a whole number"),
        (TaskConfig(template="chat", options={"examples": True}), "task.options.examples is True; expected a whole"),
        (
            TaskConfig(template="chat", options={"examples": "2"}),
            "task.options.examples is '2'; expected a whole number",
        ),
        (TaskConfig(options={"examples": 2}), "is 2 with task.template=plain; earlier turns need a chat template"),
        (TaskConfig(name="math"), "task.path is null; task.name=math needs a file to train on"),
        (TaskConfig(name="geometry", options={"images": "show"}), "task.options.images is 'show'; expected refuse or"),
        (TaskConfig(name="token_reversal", options={"length": 3}), "task.options has length"),
        (TaskConfig(name="token_reversal", options={"lengths": 3}), "task.options.lengths is 3; expected a list"),
        (TaskConfig(name="token_reversal", options={"lengths": []}), "task.options.lengths is []"),
        (TaskConfig(name="token_reversal", options={"lengths": [0]}), "task.options.lengths is [0]"),
        (TaskConfig(name="token_reversal", options={"vocabulary": 63}), "task.options.vocabulary is 63; expected 2 to"),
        (TaskConfig(name="token_reversal", options={"separator": ","}), "task.options.separator is ','"),
        (TaskConfig(name="token_reversal", num_train=0), "task.num_train is 0"),
    ],
)
def test_settings_that_a_task_has_not_are_refused(task: TaskConfig, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_task(task, 0)
    assert expected in str(caught.value)


def test_an_answer_is_needed_where_one_of_our_verifiers_takes_it() -> None:
    assert needs_answer("boxed")
    assert needs_answer("https://rewards.example/score + 0.1*boxed")
    assert not needs_answer("https://rewards.example/score")
    assert not needs_answer("tests.support.e2e_verifiers:digits")


@pytest.mark.parametrize("name", ["math", "geometry", "code", "token_reversal", "reasoning_gym"])
def test_recipes_of_tasks_are_planned_with_the_tiny_model(
    name: str, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    overrides = [f"run.dir={tmp_path}", "cluster.kind=inprocess"]
    if name != "reasoning_gym":  # whose problems are there when its package is
        overrides.append(f"model.path={tiny_policy}")
    config = load_config(CONFIGS / f"{name}.yaml", overrides)
    own = task_named(config.task.name).verifier
    if own not in VERIFIERS:
        config = load_config(CONFIGS / f"{name}.yaml", [*overrides, "task.verifier=boxed"])
    spec = make_spec(config)
    if name == "reasoning_gym":
        return
    assert spec.checked is not None
    assert spec.source(character_tokenizer()) is spec.checked
    assert len(spec.checked.heldout(config.evaluation.num_prompts)) == config.evaluation.num_prompts
    assert 3 not in spec.checked.train(0).token_ids  # <unk>


def test_reasoning_gym_is_asked_for_one_of_its_generators() -> None:
    if importlib.util.find_spec("lpo_ray.tasks.reasoning_gym") is None:
        pytest.skip("the source is not there yet")
    pytest.importorskip("reasoning_gym")
    encoder = PromptEncoder(character_tokenizer(), "plain", 1000)
    task = TaskConfig(name="reasoning_gym:chain_sum", options={"max_terms": 3})
    prompt = TASKS["reasoning_gym"].make(task, SourceContext(0, "reasoning_gym", encoder)).train(0)
    assert prompt.answer


# Token reversal


def reversal(seed: int = 0, num_train: int | None = None, **options: object) -> TokenReversalSource:
    encoder = PromptEncoder(character_tokenizer(), "plain", 60)
    settings = Settings(**options)
    return TokenReversalSource(
        seed=seed, settings=settings, verifier="token_reversal", encoder=encoder, num_train=num_train
    )


def text(token_ids: object) -> str:
    return character_tokenizer().decode(token_ids)


def test_the_answer_is_the_prompts_symbols_backwards() -> None:
    source = reversal(lengths=(4, 6), vocabulary=5)
    prompts = [source.train(index) for index in range(200)]
    assert all(text(prompt.token_ids) == f"{prompt.answer[::-1]}>" for prompt in prompts)
    assert set(Counter(len(prompt.answer) for prompt in prompts)) == {4, 6}
    assert set("".join(prompt.answer for prompt in prompts)) == set("01234")
    spaced = reversal(lengths=(3,), separator=" ").train(0)
    assert text(spaced.token_ids) == f"{spaced.answer[::-1]}>"
    assert spaced.answer[1::2] == "  "


def test_a_sequence_is_decided_by_seed_and_number_and_never_held_out() -> None:
    first, again, other = reversal(), reversal(), reversal(seed=1)
    answers = [first.train(index).answer for index in range(300)]
    assert answers == [again.train(index).answer for index in range(300)]
    assert answers != [other.train(index).answer for index in range(300)]
    heldout = [prompt.answer for prompt in first.heldout(11)]
    assert heldout == [prompt.answer for prompt in other.heldout(11)]
    assert len(set(heldout)) == 11
    assert not set(heldout) & set(answers)
    assert all(split_of(answer[::-1], "token_reversal", HELDOUT_SHARE) == "heldout" for answer in heldout)


def test_a_limited_training_set_is_cycled() -> None:
    small = reversal(num_train=4)
    epochs = [sorted(small.train(4 * epoch + n).answer for n in range(4)) for epoch in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]


def test_more_held_out_sequences_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpo_ray.tasks.token_reversal.MAX_DRAWS", 2000)
    with pytest.raises(DataError, match=r"evaluation\.num_prompts is 100, but 2000 draws gave \d+ different held-out"):
        reversal().heldout(100)
    with pytest.raises(DataError, match="has 71 tokens"):
        reversal(lengths=(70,)).train(0)


@pytest.mark.parametrize(
    ("response", "terminal", "share"),
    [
        ("0110", 1.0, 1.0),
        (" 01 10\n", 1.0, 1.0),
        ("0111", 0.0, 0.75),
        ("01101", 0.0, 1.0),
        ("01", 0.0, 0.5),
        ("1001", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_rewards_of_token_reversal(response: str, terminal: float, share: float) -> None:
    assert token_reversal("0110>", response, "0110").reward == terminal
    assert token_reversal_share("0110>", response, "0110").reward == share
