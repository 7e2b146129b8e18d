"""Rows in the columns of data sets that people train on (our own words), and their verdict on a right and a wrong
response.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lpo_ray.tasks.dataset import needs_answer
from lpo_ray.tasks.sources.layouts import recast
from lpo_ray.verifiers.calling.call import verify_sum
from lpo_ray.verifiers.calling.case import Case
from tests.support.chat_tokenizers import CHATML, byte_tokenizer
from tests.support.dataset_files import source, write_jsonl

ASKED = "What is 2+3?"


def user(text: str = ASKED) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def share(text: str = ASKED) -> list[dict[str, str]]:
    return [{"from": "system", "value": "Be brief."}, {"from": "human", "value": text}, {"from": "gpt", "value": "5"}]


def verl(prompt: str, truth: object, name: str = "math") -> dict[str, Any]:
    return {
        "data_source": name,
        "prompt": user(prompt),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"split": "train", "index": 0},
    }


CITIES = ["Rome", "Oslo", "Bonn", "Riga"]
FIVE = (r"\boxed{5}", r"\boxed{6}")
OSLO = (r"\boxed{B}", r"\boxed{C}")
GAME = ("<answer>3*4+7</answer>", "<answer>3+4+7</answer>")
MATHEMATICS: Mapping[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "gsm8k": ({"question": ASKED, "answer": "2+3=<<2+3=5>>5\n#### 5"}, FIVE),
    "gsm8k of verl": (verl(ASKED, "5", "openai/gsm8k"), FIVE),
    "DAPO-17k": (verl(f"The last line is Answer: $Answer.\n\n{ASKED}", "5", "math_dapo"), ("Answer: 5", "Answer: 6")),
    "DAPO-17k processed": ({"prompt": ASKED, "solution": "5", "source_prompt": user(), "ability": "MATH"}, FIVE),
    "Polaris": ({"problem": ASKED, "answer": "5", "difficulty": "3/8"}, FIVE),
    "DeepScaleR": ({"problem": ASKED, "answer": "5", "solution": "It is 5."}, FIVE),
    "OpenR1-Math": (
        {"problem": ASKED, "solution": "5", "answer": "5", "generations": ["x"], "messages": [*user(), *user("5")]},
        FIVE,
    ),
    "NuminaMath-CoT": ({"source": "s", "problem": ASKED, "solution": r"It is $\boxed{5}$.", "messages": user()}, FIVE),
    "NuminaMath-1.5": ({"problem": ASKED, "solution": "5", "answer": "5", "question_type": "mcq"}, FIVE),
    "Big-Math": ({"problem": ASKED, "answer": "5", "source": "s", "domain": ["d"], "llama8b_solve_rate": 0.5}, FIVE),
    "Skywork-OR1": (verl(ASKED, json.dumps(["5"])), FIVE),
    "MATH": ({"problem": ASKED, "level": "Level 1", "type": "Algebra", "solution": r"So $\boxed{5}$."}, FIVE),
    "AIME 2024": ({"ID": "2024-I-1", "Problem": ASKED, "Solution": "5", "Answer": 5}, (r"\boxed{005}", r"\boxed{50}")),
    "OpenMathReasoning": ({"problem": ASKED, "expected_answer": "5", "generated_solution": "x"}, FIVE),
    "OlympiadBench": ({"question": ASKED, "final_answer": ["5"], "is_multiple_answer": False}, FIVE),
    "RLVR": ({"messages": user(), "ground_truth": "5", "dataset": "gsm8k"}, FIVE),
    "SkyRL": ({"prompt": user(), "env_class": "gsm8k", "reward_spec": {"method": "rule", "ground_truth": "5"}}, FIVE),
    "Open-Reasoner-Zero": (
        {"0": {"from": "human", "value": ASKED}, "1": {"from": "assistant", "ground_truth": {"value": "5"}}},
        FIVE,
    ),
    "ShareGPT": ({"conversations": share(), "answer": "5"}, FIVE),
    "messages with their answer": ({"messages": [*user(), {"role": "assistant", "content": "5"}], "answer": "5"}, FIVE),
    "a prompt as JSON": ({"prompt": json.dumps(user()), "answer": "5"}, FIVE),
    "Alpaca": ({"instruction": "What is", "input": "2+3?", "output": "5", "answer": "5"}, FIVE),
    "Alpaca without input": ({"instruction": ASKED, "input": "", "output": "5", "answer": "5"}, FIVE),
    "OpenRLHF": ({"input": ASKED, "label": "5"}, FIVE),
    "OpenRLHF messages": ({"context_messages": user(), "label": "5"}, FIVE),
    "TRL": ({"prompt": user(), "answer": "5"}, FIVE),
}
CHOICE: Mapping[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "MMLU": ({"question": "Capital?", "subject": "geo", "choices": CITIES, "answer": 1}, OSLO),
    "MMLU-Pro": ({"question": "Capital?", "options": CITIES, "answer": "B", "answer_index": 1}, OSLO),
    "ARC": (
        {"question": "Capital?", "choices": {"text": CITIES, "label": ["A", "B", "C", "D"]}, "answerKey": "B"},
        OSLO,
    ),
    "ARC with digits": (
        {"question": "Capital?", "choices": {"text": CITIES, "label": ["1", "2", "3", "4"]}, "answerKey": "2"},
        (r"\boxed{2}", r"\boxed{3}"),
    ),
    "OpenBookQA": (
        {"question_stem": "Capital?", "choices": {"text": CITIES, "label": ["A", "B", "C", "D"]}, "answerKey": "B"},
        OSLO,
    ),
    "AQuA-RAT": ({"question": "2+3?", "options": ["A)4", "B)5", "C)6"], "rationale": "r", "correct": "B"}, OSLO),
    "MedQA": ({"question": "Which?", "options": dict(zip("ABCD", CITIES, strict=True)), "answer_idx": "B"}, OSLO),
    "MedMCQA": ({"question": "Which?", **dict(zip(("opa", "opb", "opc", "opd"), CITIES, strict=True)), "cop": 1}, OSLO),
}


def prompt_of(row: Mapping[str, Any], verifier: str, folder: Path) -> tuple[str, Case]:
    """Text that the engine is given, and a case without a response."""
    tokenizer = byte_tokenizer(CHATML)
    path = write_jsonl(folder / "rows.jsonl", [row])
    asked = source(
        path, tokenizer=tokenizer, template="chat", max_tokens=2000, needs_answer=needs_answer(verifier)
    ).train(0)
    shown = tokenizer.show(asked.token_ids)
    return shown, Case(shown, "", asked.answer, asked.row, raw_answer=asked.raw_answer)


def rewards(verifier: str, case: Case, *responses: str) -> list[float | None]:
    cases = [replace(case, response=response) for response in responses]
    return [verdict.reward for verdict in verify_sum(verifier, cases)]


@pytest.mark.parametrize("name", MATHEMATICS)
def test_mathematics_is_asked_and_judged(name: str, tmp_path: Path) -> None:
    row, responses = MATHEMATICS[name]
    shown, case = prompt_of(row, "math", tmp_path)
    assert "".join(shown.split()).count("2+3?") == 1
    assert shown.endswith("<|im_end|>\n<|im_start|>assistant\n"), "no answer of the data stands in the prompt"
    assert "<|im_start|>user\n" in shown
    assert rewards("math", case, *responses) == [1.0, 0.0]


@pytest.mark.parametrize("name", CHOICE)
def test_choices_are_shown_and_judged(name: str, tmp_path: Path) -> None:
    row, responses = CHOICE[name]
    shown, case = prompt_of(row, "multiple_choice", tmp_path)
    for text in ("4", "5", "6") if name == "AQuA-RAT" else CITIES:
        assert shown.count(f". {text}\n") + shown.count(f". {text}<") == 1
    assert rewards("multiple_choice", case, *responses) == [1.0, 0.0]


@pytest.mark.parametrize("right", [("Correct Answer", "Incorrect Answer "), ("correct_answer", "distractor")])
def test_right_and_wrong_answers_become_choices_in_an_order_of_the_question(
    right: tuple[str, str], tmp_path: Path
) -> None:
    letters = set()
    for number in range(20):
        wrong = {f"{right[1]}{place}": text for place, text in enumerate(["Rome", "Bonn", "Riga"], start=1)}
        row = {"Question": f"Capital {number}?", right[0]: "Oslo", **wrong}
        shown, case = prompt_of(row, "multiple_choice", tmp_path)
        assert f"{case.answer}. Oslo\n" in shown or f"{case.answer}. Oslo<" in shown
        other = next(letter for letter in "ABCD" if letter != case.answer)
        given = rf"\boxed{{{case.answer}}}", rf"\boxed{{{other}}}"
        assert rewards("multiple_choice", case, *given) == [1.0, 0.0]
        assert recast(row) == recast(row), "the same at every reading"
        letters.add(case.answer)
    assert letters == set("ABCD")


@pytest.mark.parametrize(
    "row",
    [
        {"target": 19, "nums": [3, 4, 7]},
        {"target": 19, "numbers": [3, 4, 7], "prompt": "Reach 19 with 3, 4, 7."},
        {"prompt": "Reach 19 with 3, 4, 7.", "answer": {"target": 19, "nums": [3, 4, 7]}},
        verl("Reach 19 with [3, 4, 7].", {"target": 19, "numbers": [3, 4, 7]}, "countdown"),
        verl("Reach 19 with [3, 4, 7].", {"target": 19, "nums": [3, 4, 7]}, "countdown"),
    ],
    ids=["3to4", "with prompt", "nums in the answer", "TinyZero", "nums in verl's"],
)
def test_countdown_in_every_form(row: dict[str, Any], tmp_path: Path) -> None:
    shown, case = prompt_of(row, "countdown", tmp_path)
    assert "3, 4, 7" in shown
    assert "19" in shown
    assert rewards("countdown_strict", case, *GAME) == [1.0, 0.0]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "answer": "5"},
        {"prompt": user(), "answer": "5", "target": 3},
        {"problem": "[{not json", "answer": "5"},
        {"question": "A. Rome or B. Oslo?", "choices": ["Rome", "Oslo"], "answer": "A"},
        {"question": "?", "choices": [], "answer": "A"},
        {"question": "?", "choices": [1, 2], "options": "x", "answer": "A"},
        {"prompt": ASKED, "nums": [], "target": 3},
        {"prompt": ASKED, "messages": 3, "conversations": None},
    ],
)
def test_rows_in_our_layout_stay_as_they_are(row: dict[str, Any]) -> None:
    assert recast(row) == row


def test_a_prompt_that_begins_the_response_is_no_answer_of_the_data(tmp_path: Path) -> None:
    begun = [*user(), {"role": "assistant", "content": "It is "}]
    assert prompt_of({"prompt": begun, "answer": "5"}, "math", tmp_path)[0].endswith("assistant\nIt is ")


@pytest.mark.parametrize(("right", "letter"), [(10, "K"), ("L", "L")])
def test_more_than_ten_choices_have_letters(right: object, letter: str, tmp_path: Path) -> None:
    row = {"question": "Which?", "options": [str(number) for number in range(12, 0, -1)], "answer": right}
    shown, case = prompt_of(row, "multiple_choice", tmp_path)
    assert "\nL. 1" in shown
    assert rewards("multiple_choice", case, f"The answer is {letter}", "The answer is B") == [1.0, 0.0]
