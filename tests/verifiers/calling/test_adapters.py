"""Reward functions of other systems, as their users write them, and what comes of their failures."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lpo_ray.common.plugins import UnknownName
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.adapters import adapt
from lpo_ray.verifiers.calling.call import judge_named, verify
from lpo_ray.verifiers.calling.case import Case, Sampled
from lpo_ray.verifiers.calling.values import verdict_of, verdicts_of

REWARDS = Path(__file__).parents[3] / "configs" / "rewards"
CHAT = {"prompt": [{"role": "user", "content": "3, 4, 7: make 5"}], "data_source": "countdown", "level": 2}


def ask(function: Any, *responses: str, row: dict[str, Any] | None = None, answer: str = "5") -> list[Verdict]:
    return adapt(function, "a:b")([Case("prompt ", text, answer, row or {}) for text in responses])


def rewards(verdicts: Sequence[Verdict]) -> list[float | None]:
    return [verdict.reward for verdict in verdicts]


# --- ours ---------------------------------------------------------------------------------------------------------


def test_a_function_gets_the_fields_that_it_names() -> None:
    assert rewards(ask(lambda response, truncated: len(response) + truncated, "ab", "c")) == [2, 1]


def test_three_parameters_of_any_names_are_prompt_response_and_answer() -> None:
    assert rewards(ask(lambda p, r, a: (p, r, a) == ("prompt ", "ab", "5"), "ab")) == [1]


@pytest.mark.parametrize("value", [True, 1, 1.0, np.float32(1), np.array(1.0), torch.tensor(1.0), torch.tensor([1.0])])
def test_numbers_of_any_library_are_rewards(value: object) -> None:
    assert verdict_of(value).reward == 1.0


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "1", [1.0], object(), {"acc": 1}, torch.tensor(math.nan)])
def test_what_is_no_number_is_no_reward(value: object) -> None:
    assert verdict_of(value).reward is None


@pytest.mark.parametrize(
    "returned",
    [{1.0: "a", 2.0: "b"}, {1.0, 2.0}, frozenset({1, 2}), {1: 1, 2: 2}.keys(), "12", b"12", bytearray(b"12")],
)
def test_rewards_are_in_an_order(returned: Any) -> None:
    verdicts = verdicts_of(returned, 2)
    assert rewards(verdicts) == [None, None]
    assert "expected a list of 2 rewards" in verdicts[0].detail


def spoil(value: Any) -> float:
    """Change a nested value; the reward is 1 where nobody has before."""
    value["level"].append(9)
    return float(value["level"] == [2, 9])


@pytest.mark.parametrize(
    "function",
    [
        lambda row: spoil(row["extra_info"]),
        lambda response, raw_answer: spoil(raw_answer),
        lambda completions, extra_info: [spoil(value) for value in extra_info],
        lambda completions, answer: [spoil(value) for value in answer],
        lambda solution_str, extra_info: spoil(extra_info),
        lambda solution_str, ground_truth: spoil(ground_truth),
        lambda solution_strs, extra_infos: [spoil(value) for value in extra_infos],
        lambda queries, prompts, labels: [spoil(value) for value in labels],
        lambda: SimpleNamespace(funcs=[lambda completion, info: spoil(info)], weights=[1.0]),
        lambda: SimpleNamespace(funcs=[lambda completion, extra_info: spoil(extra_info)], weights=[1.0]),
    ],
)
def test_no_function_changes_the_row_of_the_others(function: Any) -> None:
    row, gold = {"extra_info": {"level": [2]}, "info": {"level": [2]}}, {"level": [2]}
    cases = [Case("", text, "5", row, raw_answer=gold) for text in "abc"]
    assert rewards(adapt(function, "a:b")(cases)) == [1, 1, 1]
    assert (row, gold) == ({"extra_info": {"level": [2]}, "info": {"level": [2]}}, {"level": [2]})


# --- TRL ----------------------------------------------------------------------------------------------------------


def num_unique_chars(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(set(c))) for c in completions]


def conversational(
    completions: list[list[dict[str, str]]], prompts: Any, level: list[int], **kwargs: Any
) -> list[float]:
    assert [message["role"] for message in prompts[0]] == ["user"]
    return [float(c[0]["content"] == "right") * weight for c, weight in zip(completions, level, strict=True)]


def only_some_tasks(prompts: list[str], completions: list[str], task: list[str | None], **kwargs: Any) -> list[Any]:
    return [1.0 if kind == "math" else None for kind in task]


async def asynchronous(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(c)) for c in completions]


def test_trl_functions() -> None:
    assert rewards(ask(num_unique_chars, "aab", "")) == [2, 0]
    assert rewards(ask(conversational, "right", "wrong", row=CHAT)) == [2, 0]
    assert rewards(ask(only_some_tasks, "x", row={"task": "math"})) == [1]
    assert rewards(ask(asynchronous, "xy", "x")) == [2, 1]


@pytest.mark.parametrize("value", [None, math.nan, np.float32("nan"), torch.tensor(math.nan)])
def test_none_of_a_trl_function_means_that_it_does_not_apply(value: Any) -> None:
    [verdict] = ask(lambda completions: [value], "x")
    assert (verdict.reward, verdict.lack) == (None, "abstained")
    assert ask(lambda completions: ["1"], "x")[0].lack == "unscored"


def test_columns_have_their_own_types() -> None:
    def right(completions: list[str], answer: list[Any], **kwargs: Any) -> list[float]:
        return [float(int(c) == a) for c, a in zip(completions, answer, strict=True)]

    assert rewards(adapt(right, "a:b")([Case("p", text, "72", raw_answer=72) for text in ("72", "7")])) == [1, 0]
    assert rewards(ask(lambda completions, answer: [float("b" in a) for a in answer], "x", answer="abc")) == [1]


def sampled_case(row: dict[str, Any], raw_answer: Any = None) -> Case:
    shown = Sampled(array("q", [7, 8, 2]), "<user>q", "a", "<user>q<think>a<eos>", 12)
    return Case("q", "<think>a", "5", row, raw_answer=raw_answer, sampled=shown)


def test_trl_sees_what_its_trainer_would_show() -> None:
    seen: dict[str, Any] = {}

    def reward(completions: Any, **kwargs: Any) -> list[float]:
        seen.update(kwargs, completions=completions)
        kwargs["log_extra"]("parsed", ["yes"])
        kwargs["log_metric"]("accuracy", 0.5)
        return [1.0]

    [verdict] = adapt(reward, "a:b")([sampled_case({"prompt": "the row's own", "level": 3})])
    assert seen["completions"] == ["a"]
    assert seen["prompts"] == ["the row's own"]
    assert seen["completion_ids"] == [[7, 8, 2]]
    assert seen["trainer_state"].global_step == 12
    assert seen["level"] == [3]
    assert verdict == Verdict.scored(1.0, "parsed yes; accuracy 0.5")


def test_a_function_that_changes_its_prompts_changes_no_row() -> None:
    row = {"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "I"}]}
    assert rewards(ask(lambda completions, prompts: [float(len(prompts[0].pop()))], "x", row=row)) == [2]
    assert len(row["prompt"]) == 2


def test_a_column_that_the_data_lack_says_its_name() -> None:
    def needs(completions: list[str], solution: list[str]) -> list[float]:
        return [1.0]

    with pytest.raises(TypeError, match="solution"):
        ask(needs, "x")


@pytest.mark.parametrize("returned", [[], [1.0], [1.0, 2.0, 3.0], None])
def test_a_list_of_another_length_scores_nobody(returned: Any) -> None:
    verdicts = ask(lambda completions: returned, "a", "b")
    assert rewards(verdicts) == [None, None]
    assert "rewards of 2 responses" in verdicts[0].detail


# --- verl ---------------------------------------------------------------------------------------------------------


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> Any:
    if data_source == "gone":
        raise NotImplementedError(data_source)
    return {"score": float(solution_str.endswith(ground_truth)), "acc": 1}


def gsm8k(solution_str: str, ground_truth: str, method: str = "strict", format_score: float = 0.1) -> float:
    return 1.0 if f"#### {ground_truth}" in solution_str else format_score


def test_verl_functions() -> None:
    assert rewards(ask(compute_score, "it is 5", "it is 6", row={"data_source": "x", "extra_info": {"index": 1}})) == [
        1,
        0,
    ]
    assert rewards(ask(gsm8k, "#### 5", "5")) == [1, 0.1]
    assert "acc" in ask(compute_score, "5")[0].detail


def test_verl_gets_the_ground_truth_in_its_own_type() -> None:
    def tinyzero(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None) -> float:
        assert solution_str == "a"
        return float(ground_truth.pop("target") == 7)

    truth = {"target": 7, "numbers": [3, 4]}
    for _ in range(2):  # what it does to it is its own affair
        assert rewards(adapt(tinyzero, "a:b")([sampled_case({}, truth)])) == [1]


def test_verl_batch_functions_get_the_group() -> None:
    def batch(data_sources: list[str], solution_strs: list[str], ground_truths: list[Any], extra_infos: Any) -> Any:
        assert extra_infos == [{"index": 1}, {"index": 1}]
        return [
            {"score": float(s == g), "acc": len(data_sources)}
            for s, g in zip(solution_strs, ground_truths, strict=True)
        ]

    judge = adapt(batch, "a:b")
    assert judge.whole_group
    row = {"data_source": "x", "extra_info": {"index": 1}}
    verdicts = judge([Case("p", text, "[1]", row, raw_answer="5") for text in ("5", "6")])
    assert rewards(verdicts) == [1, 0]
    assert "'acc': 2" in verdicts[0].detail


def test_a_score_that_is_none_keeps_its_reason() -> None:
    assert ask(lambda solution_str, ground_truth: {"score": None, "acc": 0}, "x") == [
        Verdict.unscored("the verifier returned None")
    ]


def test_extra_info_is_a_mapping_also_where_the_row_has_none() -> None:
    def index(solution_str: str, extra_info: dict[str, int]) -> int:
        return extra_info.get("index", -1)

    assert rewards(ask(index, "x", row={"extra_info": {"index": 3}})) == [3]
    assert rewards(ask(index, "x", row={"extra_info": None})) == [-1]


# --- OpenRLHF -----------------------------------------------------------------------------------------------------


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, Any]:
    found = torch.tensor(
        [float(q.removeprefix(p) == label) for q, p, label in zip(queries, prompts, labels, strict=True)]
    )
    return {"rewards": found, "scores": found, "extra_logs": {"mean": found.mean()}}


def test_openrlhf_functions() -> None:
    assert rewards(ask(reward_func, "5", "6")) == [1, 0]
    assert rewards(ask(lambda queries, prompts, labels: torch.tensor([0.5]), "5")) == [0.5]


def test_openrlhf_queries_and_prompts_have_their_special_tokens_and_labels_their_type() -> None:
    def reward(queries: list[str], prompts: list[str], labels: list[Any]) -> list[float]:
        return [float((queries, prompts, labels) == (["<user>q<think>a<eos>"], ["<user>q"], [5]))]

    assert rewards(adapt(reward, "a:b")([sampled_case({}, 5)])) == [1]


# --- verifiers ----------------------------------------------------------------------------------------------------


@dataclass
class Rubric:
    """What we read of the library's class of this name."""

    funcs: list[Any]
    weights: list[float]
    parser: Any = field(default_factory=lambda: SimpleNamespace(parse_answer=lambda c: c[-1]["content"]))


async def correct_answer(completion: Any, answer: str) -> float:
    return 1.0 if answer in completion[-1]["content"] else 0.0


def parsed(parser: Any, completion: Any, info: dict[str, Any], state: dict[str, Any]) -> float:
    return float(parser.parse_answer(completion) == info["want"]) + len(state["answer"]) - 1


def test_a_rubric_and_an_environment() -> None:
    rubric = Rubric([correct_answer, parsed], [1.0, 0.5])
    for made in (rubric, SimpleNamespace(rubric=rubric)):
        assert rewards(ask(lambda made=made: made, "5!", "5", row={"info": {"want": "5!"}})) == [1.5, 1.0]


def test_a_part_of_a_rubric_without_a_verdict_leaves_none() -> None:
    rubric = Rubric([correct_answer, lambda completion: None], [1.0, 0.1])
    assert rewards(ask(lambda: rubric, "5")) == [None]


def test_a_group_of_rubrics_without_what_is_only_a_metric() -> None:
    def turns(state: dict[str, Any]) -> int:
        return state["trajectory"]["turns"]  # of many turns; there are none here

    group = SimpleNamespace(rubrics=[Rubric([correct_answer], [1.0]), Rubric([turns, parsed], [0.0, 0.5])])
    assert rewards(ask(lambda: SimpleNamespace(rubric=group), "5", row={"info": {"want": "5"}})) == [1.5]


def test_a_function_of_a_group_in_a_rubric_sees_the_group() -> None:
    def fewest(completions: list[Any], answers: list[str]) -> list[float]:
        lengths = [len(c[-1]["content"]) for c in completions]
        return [float(length == min(lengths)) for length in lengths]

    judge = adapt(lambda: Rubric([correct_answer, fewest], [1.0, 0.5]), "a:b")
    assert judge.whole_group
    assert rewards(judge([Case("p", text, "5") for text in ("5", "is 5", "no")])) == [1.5, 1.0, 0.0]
    assert not adapt(lambda: Rubric([correct_answer], [1.0]), "a:b").whole_group


# --- all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda one: 1, "a function of one; expected parameters among"),
        (lambda one, two, three, four: 1, "a function of one, two, three, four"),
        (lambda: 7, "makes a int; expected"),
    ],
)
def test_a_function_of_no_known_style_is_refused(function: Any, said: str) -> None:
    with pytest.raises(UnknownName, match=said):
        adapt(function, "a:b")


def test_one_response_that_makes_it_raise_costs_the_others_nothing(tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(
        "def reward(response):\n    if response == 'bad':\n        raise RuntimeError('no network')\n    return 1.0\n"
    )
    verdicts = verify(f"{tmp_path}/picky.py:reward", [Case("", text, "") for text in ("good", "bad", "good")])
    assert rewards(verdicts) == [1, None, 1]
    assert "RuntimeError: no network" in verdicts[1].detail


def test_a_function_of_a_list_that_raises_is_not_asked_about_parts_of_it(tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(
        "def reward(completions, **kwargs):\n"
        "    if 'bad' in completions:\n        raise RuntimeError('no network')\n"
        "    return [float(len(completions))] * len(completions)\n"
    )
    verdicts = verify(f"{tmp_path}/picky.py:reward", [Case("", text, "") for text in ("good", "bad", "good")])
    assert rewards(verdicts) == [None, None, None]
    assert "RuntimeError: no network" in verdicts[0].detail


@pytest.mark.parametrize("name", ["trl_style.py:reward_func", "verl_style.py:compute_score"])
def test_the_examples_give_rewards(name: str) -> None:
    answer = '{"numbers": [3, 4, 7], "target": 5}'
    verdicts = judge_named(f"{REWARDS}/{name}")([Case("3,4,7=5:", text, answer) for text in ("3*4-7=5", "", "5")])
    assert all(verdict.is_scored for verdict in verdicts)
    assert len({verdict.reward for verdict in verdicts}) > 1


@pytest.mark.parametrize(
    ("text", "said"),
    [("x=", "SyntaxError|invalid syntax"), ("raise OSError('disk')", "disk"), ("", "no attribute 'f'")],
)
def test_a_file_that_cannot_be_loaded_says_why(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(UnknownName, match=said):
        judge_named(f"{tmp_path}/broken.py:f")


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"missing\.py"):
        judge_named(f"{tmp_path}/missing.py:f")
