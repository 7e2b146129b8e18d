"""Data sets for tests: files, a tokenizer with a chat template, and the rows that other systems prepare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.tasks.base_policy import character_tokenizer
from lpo_ray.tasks.sources.columns import Check, anything
from lpo_ray.tasks.sources.dataset import DatasetSource
from lpo_ray.tasks.sources.prompt_file import Reading
from lpo_ray.tasks.sources.source import PromptEncoder

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
Row = Mapping[str, Any]

VERL_GSM8K: Row = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "Tom has 3 apples and buys 4. How many has he?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "7"},
    "extra_info": {"split": "train", "index": 0, "answer": "3 + 4 = 7 #### 7", "question": "Tom has 3 apples ..."},
}
VERL_COUNTDOWN: Row = {
    "data_source": "countdown",
    "prompt": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Using the numbers [44, 19, 35], create an equation that equals 98."},
    ],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": {"target": 98, "numbers": [44, 19, 35]}},
    "extra_info": {"split": "train", "index": 0},
}
VERL_GEO3K: Row = {
    "data_source": "hiyouga/geometry3k",
    "prompt": [{"role": "user", "content": "<image>Find x."}],
    "images": [{"bytes": b"\x89PNG\x00", "path": None}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "3"},
    "extra_info": {"split": "train", "index": 0, "answer": "3", "question": "<image>Find x."},
}
OPENRLHF_COLLECTION: Row = {
    "dataset": "some/prompts",
    "context": "Human: What is 2 + 2?",
    "context_messages": [{"role": "user", "content": "What is 2 + 2?"}],
    "id": "42",
}
OPENRLHF_LABELLED: Row = {"input": "What is 2 + 2?", "label": "4", "datasource": "sums"}
OPENRLHF_QUESTION: Row = {"question": "What is 2 + 2?", "answer": "4", "level": 1}
TRL_TEXT: Row = {"prompt": "What is 2 + 2?", "solution": "4", "problem_type": "sum"}
TRL_CHAT: Row = {"prompt": [{"role": "user", "content": "What is 2 + 2?"}], "solution": "4"}
MBPP: Row = {
    "task_id": 2,
    "text": "Write a function to add two numbers.",
    "code": "def add(a, b): return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
    "test_setup_code": "",
}


@cache
def plain_tokenizer() -> Tokenizer:
    return character_tokenizer()


def chat_tokenizer() -> Tokenizer:
    tokenizer = character_tokenizer()
    tokenizer._tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_jsonl(path: Path, rows: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_parquet(path: Path, rows: Sequence[Row], row_group_size: int = 1000) -> str:
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path, row_group_size=row_group_size)
    return str(path)


def write(path: Path, rows: Sequence[Row]) -> str:
    return write_jsonl(path, rows) if path.suffix == ".jsonl" else write_parquet(path, rows)


def source(
    path: str,
    heldout: str | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    template: str = "plain",
    max_tokens: int = 200,
    columns: tuple[str | None, str | None] = (None, None),
    needs_answer: bool = True,
    ignore_images: bool = False,
    seed: int = 0,
    num_train: int | None = None,
    check: Check = anything,
) -> DatasetSource:
    encoder = PromptEncoder(tokenizer or plain_tokenizer(), template, max_tokens)
    reading = Reading(encoder, *columns, needs_answer=needs_answer, ignore_images=ignore_images, check=check)
    return DatasetSource(
        path=path, heldout_path=heldout, reading=reading, verifier="boxed", seed=seed, num_train=num_train
    )
