"""Tasks whose responses are conversations: their prompts, what the tiny policy is taught, what is filled in."""

from __future__ import annotations

import re

import pytest

from lpo_ray.agents.tools.builtin import calculator
from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import ConfigError
from lpo_ray.tasks.base_policy import character_tokenizer
from lpo_ray.tasks.sources import arithmetic_problems
from lpo_ray.tasks.sources.source import PromptEncoder
from lpo_ray.tasks.table import TASKS, check_task, task_named, with_environment
from lpo_ray.tasks.task import SourceContext
from lpo_ray.tasks.warm_starts import WARM_STARTS
from lpo_ray.verifiers.countdown import countdown_strict, value_text


def test_a_tasks_own_environment_is_filled_in_where_none_is_set() -> None:
    assert with_environment(TaskConfig(name="countdown_turns")).environment == "countdown_turns"
    assert with_environment(TaskConfig(name="arithmetic_tool")).tools == ["calculator"]
    assert with_environment(TaskConfig(name="countdown_turns", environment="x.py:X")).environment == "x.py:X"
    assert with_environment(TaskConfig(name="countdown_turns", tools=["python"])).environment is None
    plain = TaskConfig(name="countdown")
    assert with_environment(plain) is plain


@pytest.mark.parametrize("name", ["countdown_turns", "arithmetic_tool"])
def test_prompts_are_the_same_at_every_call_and_held_out_ones_are_others(name: str) -> None:
    tokenizer = character_tokenizer()
    context = SourceContext(3, "exact", PromptEncoder(tokenizer, "plain", 100))
    source = task_named(name).make(TaskConfig(name=name), context)
    train = {tokenizer.show(source.train(index).token_ids) for index in range(200)}
    heldout = {tokenizer.show(prompt.token_ids) for prompt in source.heldout(50)}
    assert len(train) > 190 and len(heldout) > 45 and not train & heldout
    assert source.train(5).prompt_id == "train-00000005"
    assert source.train(5).row["prompt"] == tokenizer.show(source.train(5).token_ids)


def test_unknown_options_are_refused_by_the_tasks_own_name() -> None:
    for name in ("countdown_turns", "arithmetic_tool"):
        with pytest.raises(ConfigError, match=f"which task.name={name} has not"):
            check_task(TaskConfig(name=name, options={"nosuch": 1}), 0)
    with pytest.raises(ConfigError, match=r"task\.tool_parser is 'qwen'; expected auto or one of hermes, llama3_json"):
        check_task(TaskConfig(name="arithmetic_tool", tool_parser="qwen"), 0)
    assert set(WARM_STARTS) <= set(TASKS)


def test_countdown_in_turns_is_taught_with_wrong_tries_of_which_only_the_solution_is_learned() -> None:
    tries = []
    for index in range(200):
        asked, *pieces = WARM_STARTS["countdown_turns"](0, index, (3,))
        numbers, target = re.fullmatch(r"([\d,]+)=(\d+):", asked.text).groups()
        answer = f'{{"numbers": [{numbers}], "target": {target}}}'
        said = [piece for piece in pieces if piece.said]
        tries.append(len(said))
        assert [piece.learned for piece in said] == [False] * (len(said) - 1) + [True]
        assert countdown_strict("", said[-1].text, answer).reward == 1.0
        for wrong, told in zip(pieces[0::2], pieces[1::2], strict=False):
            assert countdown_strict("", wrong.text, answer).reward == 0.0
            assert told.text == f"={value_text(wrong.text)}\n" and not told.said and not told.learned
    assert {1, 2, 3} == set(tries) and 70 < tries.count(1) < 130


def test_arithmetic_is_taught_with_and_without_the_tool() -> None:
    kinds = []
    for index in range(100):
        asked, *pieces = WARM_STARTS["arithmetic_tool"](0, index, (3,))
        assert pieces[-1].text == calculator(asked.text.removesuffix("=")) and pieces[-1].learned
        kinds.append(len(pieces))
        if len(pieces) == 3:
            assert pieces[0].text == f"[{asked.text.removesuffix('=')}]" and pieces[1].text == f"{pieces[2].text}\n"
    assert 30 < kinds.count(1) < 70 and kinds.count(1) + kinds.count(3) == 100


def test_a_problem_of_arithmetic_reads_as_text_too() -> None:
    problem = arithmetic_problems.ArithmeticProblem("37*84+5", "3113")
    assert problem.plain == "37*84+5=" and "What is 37 * 84 + 5?" in problem.chat
