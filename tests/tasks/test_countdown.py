from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.tasks.base_policy import character_tokenizer
from lpo_ray.tasks.countdown import CountdownSource
from lpo_ray.tasks.sources.countdown_problems import EXAMPLES, Problem, answer_json, conversation, generate, render
from lpo_ray.tasks.sources.source import PromptEncoder
from lpo_ray.verifiers.countdown import countdown_strict
from tests.support.dataset_files import chat_tokenizer


def source(seed: int, **changes: object) -> CountdownSource:
    tokenizer = character_tokenizer()
    settings = {"counts": [3], "template": "plain", "verifier": "countdown", "num_train": None, **changes}
    return CountdownSource(seed=seed, encoder=PromptEncoder(tokenizer, "plain", 100), **settings)


def key(problem: object) -> tuple:
    return (*sorted(problem.numbers), problem.target)


@given(st.integers(0, 2**40), st.integers(0, 10**9), st.sampled_from(["train", "heldout"]))
def test_a_problem_is_decided_by_seed_index_and_split(seed: int, index: int, split: str) -> None:
    problem = generate(seed, index, split=split, counts=(3, 4))
    assert problem == generate(seed, index, split=split, counts=(3, 4))
    assert problem.split == split
    assert len(problem.numbers) in (3, 4)
    assert 0 <= problem.target <= 100
    assert all(1 <= number <= 20 for number in problem.numbers)


@given(st.lists(st.integers(1, 20), min_size=3, max_size=4), st.integers(0, 100), st.randoms())
def test_the_split_is_the_problems_own_whatever_the_order_or_solution(numbers: list, target: int, rng: Random) -> None:
    shuffled = rng.sample(numbers, len(numbers))
    assert Problem(tuple(numbers), target, "").split == Problem(tuple(shuffled), target, "another").split


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "test"}, "split is 'test'; expected train or heldout"),
        ({"counts": ()}, "counts is ()"),
        ({"counts": (3, 0)}, "counts is (3, 0)"),
        ({"max_number": 0}, "max_number is 0"),
        ({"max_target": -1}, "draws gave no train problem"),
    ],
)
def test_settings_without_a_problem_are_refused(settings: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpo_ray.tasks.sources.countdown_problems.MAX_DRAWS", 100)
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(0, 0, **{"split": "train", **settings})


def test_splits_never_overlap_whatever_the_seeds() -> None:
    train = {key(generate(seed, n, split="train")) for seed in range(3) for n in range(700)}
    heldout = {key(generate(seed, n, split="heldout")) for seed in range(3) for n in range(700)}
    assert not train & heldout
    assert len(train) > 1500


def test_one_seed_gives_the_same_prompts_and_another_seed_others() -> None:
    first, again, other = source(0), source(0), source(1)
    assert [first.train(n).token_ids.tolist() for n in range(20)] == [
        again.train(n).token_ids.tolist() for n in range(20)
    ]
    assert [first.train(n).answer for n in range(20)] != [other.train(n).answer for n in range(20)]
    assert [p.answer for p in first.heldout(20)] == [p.answer for p in other.heldout(20)]


def test_a_finite_training_set_is_cycled_in_a_new_order_with_new_ids() -> None:
    small = source(0, num_train=5)
    epochs = [[small.train(5 * epoch + n) for n in range(5)] for epoch in range(3)]
    answers = [[prompt.answer for prompt in epoch] for epoch in epochs]
    assert sorted(answers[0]) == sorted(answers[1]) == sorted(answers[2])
    assert len({tuple(epoch) for epoch in answers}) > 1
    assert len({prompt.prompt_id for epoch in epochs for prompt in epoch}) == 15


def test_templates() -> None:
    problem = generate(0, 0, split="train")
    assert render(problem, "plain").endswith(f"={problem.target}:")
    assert "<answer>" in render(problem, "chat")


def test_examples_are_right_and_of_the_training_split() -> None:
    for example in EXAMPLES:
        assert countdown_strict("", example.solution, answer_json(example)).reward == 1
        assert example.split == "train"


@pytest.mark.parametrize("examples", [1, 2])
def test_examples_are_earlier_turns_in_the_form_of_the_question(examples: int) -> None:
    problem = generate(0, 0, split="heldout")
    turns = conversation(problem, examples)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * examples + ["user"]
    assert [turn["content"] for turn in turns[1::2]] == [example.solution for example in EXAMPLES[:examples]]
    numbers = ", ".join(map(str, problem.numbers))
    assert turns[-1]["content"] == f"Make {problem.target} from {numbers}."
    tokenizer = chat_tokenizer()
    encoder = PromptEncoder(tokenizer, "chat", 500)
    made = CountdownSource(
        seed=0, counts=[3], template="chat", examples=examples, verifier="countdown", encoder=encoder, num_train=None
    )
    assert tokenizer.show(made.heldout(1)[0].token_ids) == tokenizer.render(turns)
