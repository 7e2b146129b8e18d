from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from lpo_ray.errors import ConfigError, DataError
from lpo_ray.tasks.base_policy import character_tokenizer
from lpo_ray.tasks.gym_process import GeneratorProcess
from lpo_ray.tasks.reasoning_gym import BLOCK, INSTRUCTION, ReasoningGymSource, generators, split_of_question
from lpo_ray.tasks.sources.source import PromptEncoder
from lpo_ray.verifiers.calling.call import verify
from lpo_ray.verifiers.calling.case import Case

COMPOSITE = {"datasets": [{"name": "gcd", "weight": 1}, {"name": "chain_sum", "weight": 1}]}


class Encoder(PromptEncoder):
    """Characters as tokens: any text, which the tokenizer of the tiny policy does not take."""

    def __init__(self, max_tokens: int = 100_000) -> None:
        super().__init__(character_tokenizer(), "plain", max_tokens)
        self.encode = lambda text: np.array([ord(character) for character in text])


def source(name: str = "chain_sum", seed: int = 0, **changes: object) -> ReasoningGymSource:
    settings = {"options": {}, "verifier": "reasoning_gym", "encoder": Encoder(), "num_train": None, **changes}
    return ReasoningGymSource(seed=seed, name=name, **settings)


def texts(prompts: list) -> list[str]:
    return ["".join(map(chr, prompt.token_ids)) for prompt in prompts]


def test_random_access() -> None:
    first, again, other = source(), source(), source(seed=1)
    order = [5, 0, 3 * BLOCK + 1, 2, 3 * BLOCK + 1, 5]
    kept = {number: texts([first.train(number)])[0] for number in order}
    assert [kept[number] for number in sorted(kept)] == texts([again.train(number) for number in sorted(kept)])
    assert [kept[number] for number in sorted(kept)] != texts([other.train(number) for number in sorted(kept)])
    assert len(set(kept.values())) == len(kept)
    assert [first.train(number).prompt_id for number in (0, 11)] == ["train-00000000", "train-00000011"]


@pytest.mark.parametrize("name", ["chain_sum", "gcd", "string_splitting", "coin_flip", "leg_counting"])
def test_train_and_heldout_share_no_question_whatever_the_seed(name: str) -> None:
    heldout = texts(source(name).heldout(60))
    assert heldout == texts(source(name, seed=1).heldout(60))
    assert texts(source(name).heldout(7)) == heldout[:7]
    train = [text for seed in (0, 1) for text in texts([source(name, seed=seed).train(n) for n in range(150)])]
    assert not set(train) & set(heldout)
    for text, split in [*((text, "train") for text in train), *((text, "heldout") for text in heldout)]:
        assert text.endswith(INSTRUCTION)
        assert split_of_question(text.removesuffix(INSTRUCTION)) == split


def test_the_verifier_takes_its_answers() -> None:
    made = source("composite", options=COMPOSITE)
    for prompt in (*(made.train(number) for number in range(5)), *made.heldout(5)):
        prompt = pickle.loads(pickle.dumps(prompt))
        case = Case("", f"<answer>{prompt.answer}</answer>", prompt.answer, prompt.row)
        assert verify(prompt.verifier, [case])[0].reward == 1.0


def test_a_finite_training_set_is_cycled_in_a_new_order_with_new_ids() -> None:
    small = source(num_train=5)
    epochs = [[small.train(5 * epoch + number) for number in range(5)] for epoch in range(3)]
    assert len({tuple(sorted(texts(epoch))) for epoch in epochs}) == 1
    assert len({tuple(texts(epoch)) for epoch in epochs}) > 1
    assert len({prompt.prompt_id for epoch in epochs for prompt in epoch}) == 15


def test_options_change_the_problems() -> None:
    short, long = (source(options={"min_terms": terms, "max_terms": terms}) for terms in (2, 6))
    assert len(short.train(0).token_ids) < len(long.train(0).token_ids)


def test_questions_that_are_too_long_are_passed_over() -> None:
    lengths = [len(source("gcd").train(number).token_ids) for number in range(40)]
    most = sorted(lengths)[20]
    kept = source("gcd", encoder=Encoder(most))
    assert all(len(kept.train(number).token_ids) <= most for number in range(40))
    with pytest.raises(DataError, match=r"draws gave no train problem: .* were longer than the 5 tokens"):
        source("gcd", encoder=Encoder(5)).train(0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chain_sums", {}, "no generator; expected such as chain_sum"),
        ("", {}, "no generator; expected one of ab, "),
        ("chain_sum", {"terms": 3}, "no option terms; expected among .*min_terms"),
        ("chain_sum", {"seed": 3}, "no option seed"),
        ("chain_sum", {"min_terms": -1}, "was refused: .*expected values that chain_sum takes"),
        ("composite", {}, "was refused: Must specify at least one dataset"),
    ],
)
def test_what_is_not_there_is_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source(name, options=options)


def digests(names: list[str], hash_seed: str) -> str:
    code = (
        "import hashlib; from tests.tasks.test_reasoning_gym import COMPOSITE, source\n"
        f"for name in {names}:\n"
        "    made = source(name, options=COMPOSITE if name == 'composite' else {})\n"
        "    rows = [made.train(number).row for number in (0, 1, 64)]\n"
        "    print(name, hashlib.md5(repr(rows).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": "."}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_problems_out_of_sets_are_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = []
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        process = GeneratorProcess()
        made = [process.entry("ransom_note", {"seed": 1, "size": 9}, number) for number in (8, 0)]
        entries.append(made)
        process.close()
    assert entries[0] == entries[1]
    with pytest.raises(DataError, match="makes problems of reasoning_gym:ransom_note died with exit code -9"):
        process.entry("ransom_note", {"seed": 1, "size": 9}, 0)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_problems_of_every_generator() -> None:
    names = [name for name in generators() if name != "futoshiki"]  # which takes 20 s
    assert digests(names, "1").splitlines() == digests(names, "2").splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("name", generators())
def test_every_generator(name: str) -> None:
    options = COMPOSITE if name == "composite" else {}
    made = source(name, options=options)
    prompts = [*(made.train(number) for number in (0, 1, BLOCK)), *made.heldout(1)]
    assert [len(prompt.token_ids) > len(INSTRUCTION) for prompt in prompts] == [True] * 4
    again = source(name, options=options)
    assert texts([again.train(BLOCK), again.train(1)]) == texts([prompts[2], prompts[1]])
    pickle.dumps(prompts)
