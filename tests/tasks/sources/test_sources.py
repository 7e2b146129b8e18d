"""Data sets: layouts, what is wrong with rows, reading on demand, order, overlap."""

from __future__ import annotations

import json
import logging
import os
import tracemalloc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lpo_ray.errors import DataError, UnusableRow
from lpo_ray.interfaces import PromptSource
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.tasks.sources import tables
from lpo_ray.tasks.sources.columns import MAX_DEPTH
from lpo_ray.tasks.sources.rows import JsonlRows, open_rows
from lpo_ray.tasks.sources.source import PromptEncoder, epoch_order, first_usable
from lpo_ray.tasks.sources.tables import ParquetRows
from lpo_ray.verifiers.answers import check_answer
from lpo_ray.verifiers.calling.adapters import adapt
from lpo_ray.verifiers.calling.case import Case
from tests.support import dataset_files as made
from tests.support.dataset_files import chat_tokenizer, source, write, write_jsonl, write_parquet

SUMS = [{"prompt": f"{n} + {n} =", "answer": str(2 * n), "level": n % 3} for n in range(50)]
PROMPT = "What is 2 + 2?"


def refused(path: str, heldout: str | None = None, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        source(path, heldout, **settings)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("row", "text", "answer"),
    [
        (made.VERL_GSM8K, "[user]Tom has 3 apples and buys 4. How many has he?\n[assistant]", "7"),
        (
            made.VERL_COUNTDOWN,
            "[system]You are a helpful assistant.\n[user]Using the numbers [44, 19, 35], create an equation that "
            "equals 98.\n[assistant]",
            '{"target": 98, "numbers": [44, 19, 35]}',
        ),
        (made.OPENRLHF_LABELLED, PROMPT, "4"),
        (made.OPENRLHF_QUESTION, PROMPT, "4"),
        (made.TRL_TEXT, PROMPT, "4"),
        (made.TRL_CHAT, f"[user]{PROMPT}\n[assistant]", "4"),
        ({"problem": PROMPT, "final_answer": 4}, PROMPT, "4"),
    ],
)
def test_layouts_are_recognised(suffix: str, row: made.Row, text: str, answer: str, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    prompt = source(write(tmp_path / f"rows{suffix}", [row]), tokenizer=tokenizer).train(0)
    assert tokenizer.show(prompt.token_ids) == text
    assert prompt.answer == answer
    assert prompt.prompt_id == "train-00000000-row-1"
    json.dumps(dict(prompt.row))


def test_a_prompt_collection_without_answers_is_taken_where_none_is_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_parquet(tmp_path / "rows.parquet", [made.OPENRLHF_COLLECTION])
    prompt = source(path, tokenizer=chat_tokenizer(), needs_answer=False).train(0)
    assert prompt.answer == ""
    assert prompt.row["prompt"] == [{"role": "user", "content": PROMPT}]
    assert "context_messages" not in prompt.row
    assert "has no column of answers" in caplog.text
    assert "row 1 has no answer; its columns are 'dataset', 'context'" in refused(path, tokenizer=chat_tokenizer())


def test_what_the_configuration_names_wins(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{**made.VERL_GSM8K, **made.MBPP}])
    prompt = source(path, columns=("text", "test_list")).train(0)
    assert json.loads(prompt.answer) == made.MBPP["test_list"]
    assert prompt.row["prompt"] == made.MBPP["text"]  # messages of another column would make functions conversational
    assert prompt.raw_answer == made.MBPP["test_list"]
    nested = source(path, columns=("extra_info.question", "extra_info.answer")).train(0)
    assert nested.answer == made.VERL_GSM8K["extra_info"]["answer"]
    assert "row 1: it has no words; its columns are 'data_source', 'prompt'" in refused(path, columns=("words", None))


def test_text_goes_through_the_chat_template_when_the_task_says_so(tmp_path: Path) -> None:
    tokenizer, path = chat_tokenizer(), write_jsonl(tmp_path / "rows.jsonl", SUMS[3:4])
    assert tokenizer.show(source(path, tokenizer=tokenizer, template="chat").train(0).token_ids) == (
        "[user]3 + 3 =\n[assistant]"
    )


def test_a_conversation_that_ends_with_the_assistant_goes_on_there(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    messages = [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "It is"}]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": messages, "answer": "4"}])
    assert tokenizer.show(source(path, tokenizer=tokenizer).train(0).token_ids) == "[user]2 + 2\n[assistant]It is"


def test_the_row_reaches_reward_functions_of_others(tmp_path: Path) -> None:
    def trl(completions: list, prompts: list, solution: list, **columns: object) -> list:
        assert prompts[0][0]["content"] == PROMPT
        assert completions[0][0]["role"] == "assistant"
        return [float(made == wanted) for made, wanted in zip(["4"], solution, strict=True)]

    def verl(data_source: str, solution_str: str, ground_truth: str, extra_info: dict) -> float:
        assert data_source == "openai/gsm8k"
        assert extra_info["index"] == 0
        return float(solution_str == ground_truth)

    for function, row, response in ((trl, made.TRL_CHAT, "4"), (verl, made.VERL_GSM8K, "7")):
        prompt = source(write_parquet(tmp_path / "rows.parquet", [row]), tokenizer=chat_tokenizer()).train(0)
        (verdict,) = adapt(function, "f")([Case("", response, prompt.answer, prompt.row)])
        assert verdict.reward == 1.0, verdict.detail


def test_images_are_refused_or_kept_beside_the_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_parquet(tmp_path / "rows.parquet", [made.VERL_GEO3K])
    assert "row 1 has 1 images, and this version trains on text only" in refused(path, tokenizer=chat_tokenizer())
    prompt = source(path, tokenizer=chat_tokenizer(), ignore_images=True).train(0)
    assert prompt.row["images"] == [{"bytes": "iVBORwA=", "path": None}]
    assert "1 prompts have images, which the policy does not see" in caplog.text
    parts = [{"type": "image"}, {"type": "text", "text": "Find x."}]
    path = write_jsonl(tmp_path / "parts.jsonl", [{"prompt": [{"role": "user", "content": parts}], "answer": "3"}])
    assert "has 1 images" in refused(path, tokenizer=chat_tokenizer())


DEEP: object = "x"
for _ in range(MAX_DEPTH + 1):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"answer": "1"}, "row 2: it has no prompt; its columns are 'answer'"),
        ({"prompt": " \n", "answer": "1"}, "row 2: prompt is ' \\n'; expected a text that is not empty, or messages"),
        ({"prompt": 5, "answer": "1"}, "row 2: prompt is 5; expected a text that is not empty, or messages"),
        ({"prompt": {"a": 1}, "answer": "1"}, "row 2: prompt is {'a': 1}; expected a text"),
        ({"prompt": [], "answer": "1"}, "row 2: prompt is []; expected a text"),
        ({"prompt": ["hello"], "answer": "1"}, "row 2: prompt, message 1 is 'hello'; expected role and content"),
        ({"prompt": [{"content": "x"}], "answer": "1"}, "row 2: prompt, message 1 has the role None"),
        ({"prompt": [{"role": "user"}], "answer": "1"}, "row 2: prompt, message 1 has the content None"),
        ({"prompt": [{"role": "user", "content": [{"type": "audio"}]}], "answer": "1"}, "expected parts of type text"),
        ({"prompt": [{"role": "user", "content": " "}], "answer": "1"}, "expected messages of which one has a text"),
        ({"prompt": [{"role": "tool", "content": "x"}], "answer": "1"}, "row 2: prompt: the model's chat template"),
        ({"prompt": "half \ud83d", "answer": "1"}, "row 2: prompt has half a surrogate pair at character 5"),
        ({"prompt": "a", "answer": "\ud83d"}, "row 2: answer has half a surrogate pair at character 0"),
        ({"prompt": "a", "answer": "1", "info": DEEP}, f"row 2: info is nested deeper than {MAX_DEPTH} levels"),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out_with_its_number_and_column(
    row: object, expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And keeps its place, so that the others are trained in the order that they would have beside a good one."""
    path = write_jsonl(tmp_path / "rows.jsonl", [SUMS[0], row, row, SUMS[1]])
    found = source(path, tokenizer=chat_tokenizer(), seed=3)
    assert "2 of 4 prompts are left out, as they or their answers cannot be used" in caplog.text
    assert expected in caplog.text
    whole = source(write_jsonl(tmp_path / "good.jsonl", SUMS[:4]), tokenizer=chat_tokenizer(), seed=3)
    rows = [found.position(index).row for index in range(8)]
    assert rows == [whole.position(index).row for index in range(8)]
    for index, number in enumerate(rows):
        if number in (2, 3):
            with pytest.raises(UnusableRow, match=f"row {number}: "):
                found.train(index)
        else:
            assert found.train(index).prompt_id == whole.train(index).prompt_id
    assert found.train_file.num_duplicates == 0
    alone = source(write_jsonl(tmp_path / "train.jsonl", [SUMS[2], row]), path, tokenizer=chat_tokenizer())
    assert [prompt.answer for prompt in alone.heldout(2)] == [SUMS[0]["answer"], SUMS[1]["answer"]], "no overlap"
    bad = write_jsonl(tmp_path / "bad.jsonl", [row, row])
    if "prompt" in row:
        assert "no row of" in refused(bad, tokenizer=chat_tokenizer())


def test_a_line_that_is_no_row_is_a_damaged_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [SUMS[0], [1, 2]])
    assert "row 2 is '[1, 2]'; expected a JSON object" in refused(path, tokenizer=chat_tokenizer())


BAD = [{**SUMS[0], "answer": None}, *SUMS[1:5], {**SUMS[5], "answer": float("nan")}, SUMS[6], {**SUMS[7], "answer": ""}]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_whose_answers_cannot_be_read_are_left_out_and_keep_their_place(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*BAD[:5], {**BAD[5], "answer": None}, *BAD[6:]] if suffix == ".parquet" else BAD  # a column of texts
    path, good = write(tmp_path / f"rows{suffix}", rows), write(tmp_path / f"good{suffix}", SUMS[:8])
    found, whole = source(path, check=partial(check_answer, "boxed"), seed=1), source(good, seed=1)
    assert (
        "3 of 8 prompts are left out, as they or their answers cannot be used: row 1: answer: there is none;"
        in caplog.text
    )
    assert "row 8: answer: boxed cannot read it: the answer of a mathematics task is ''" in caplog.text
    for index in range(16):
        expected = whole.train(index)
        if found.position(index).row in (1, 6, 8):
            with pytest.raises(UnusableRow, match=f"row {found.position(index).row}: answer: ") as caught:
                found.train(index)
            assert caught.value.prompt_id == expected.prompt_id
        else:
            assert found.train(index).prompt_id == expected.prompt_id
    assert len({prompt.prompt_id for prompt in first_usable(found, 10)}) == 10


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_an_answer_that_is_no_finite_number_is_none(number: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"prompt": "a", "answer": "1"}}\n{{"prompt": "b", "answer": {number}}}\n')
    assert source(str(path)).train_file.faults == {1: "answer: there is none"}


@pytest.mark.parametrize("column", ["answer", "label"])
def test_bytes_are_text_or_refused(column: str, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", [{"prompt": b"2+2=", column: "4½".encode()}])
    prompt = source(path).train(0)
    assert (prompt.answer, prompt.raw_answer) == ("4½", "4½")
    assert prompt.row == {"prompt": "2+2="} | ({"label": "4½"} if column == "label" else {})
    nested = write_parquet(tmp_path / "n.parquet", [{"prompt": "a", "reward_model": {"ground_truth": b"4"}}])
    assert source(nested).train(0).answer == "4"
    for row, name in (({"prompt": "a", column: b"\xff"}, column), ({"prompt": b"\xff", column: b"4"}, "prompt")):
        bad = write_parquet(tmp_path / "bad.parquet", [row])
        assert f"row 1: {name} is bytes that are not UTF-8" in refused(bad)


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    columns = [pa.array(["a"]), pa.array(["1"]), pa.array(["2"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["prompt", "answer", "answer"]), path)
    assert "has the columns ['prompt', 'answer', 'answer']; expected names, each once" in refused(str(path))


def test_an_empty_prompt_of_a_table_is_said_to_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,answer\na,1\n,2\n")
    found = source(str(path), columns=("prompt", "answer")).train_file.faults
    assert found == {1: "prompt is empty; expected a text that is not empty, or messages"}


def test_a_prompt_that_is_far_too_long_is_not_encoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0
    encode_many = Tokenizer.encode_many

    def watched(self: Tokenizer, texts: Sequence[str]) -> list[Any]:
        nonlocal longest
        longest = max(longest, *map(len, texts))
        return encode_many(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_many", watched)
    rows = [*SUMS[:3], {"prompt": "x" * 10**6, "answer": "1"}, *SUMS[3:5], {"prompt": "x" * 201, "answer": "1"}]
    found = source(write_jsonl(tmp_path / "rows.jsonl", rows)).train_file
    assert [found.row(position) for position in range(len(found))] == [1, 2, 3, 5, 6]
    assert longest == 64 * 200


def test_a_long_text_of_few_tokens_is_counted_whole() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>"))
    encoder = PromptEncoder(tokenizer, "plain", 10)
    texts = ["x" * 10_000, "x " * 9 + " " * 10_000 + "x", "x " * 10_000, " " * 5000 + "x " * 11]
    assert encoder.count_many([encoder.render(text) for text in texts]) == [1, 10, 320, 11]


def test_held_out_rows_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    train, heldout = write_jsonl(tmp_path / "train.jsonl", SUMS[20:30]), write_jsonl(tmp_path / "held.jsonl", BAD)
    found = source(train, heldout, check=partial(check_answer, "boxed"))
    ids = [f"heldout-{number:08d}" for number in (1, 2, 3, 4, 6)]
    assert [prompt.prompt_id for prompt in found.heldout(3)] == ids[:3]
    assert [prompt.prompt_id for prompt in found.heldout(8)] == ids  # a few bad rows end no evaluation
    with pytest.raises(DataError, match="there are 8 held-out prompts"):
        found.heldout(9)


def test_a_file_of_which_no_answer_can_be_read_is_an_error(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": "a", "answer": "x", "n": 1}, {"prompt": "b", "answer": "y"}]
    )
    said = refused(path, check=partial(check_answer, "geometry"))
    assert "no row of" in said
    assert "row 2: answer: geometry cannot read it" in said


def test_columns_are_recognised_though_the_first_rows_lack_an_answer(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": None, "solution": "long"}, {"prompt": "b", "answer": "2", "solution": "long"}]
    found = source(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert [prompt.answer for prompt in first_usable(found, 2)] == ["2", "2"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (42, "42"), (42.0, "42"), (0.0, "0"), (-0.0, "0"), (2.5, "2.5"), (1e21, "1" + "0" * 21), (1e-7, "0.0000001"),
        (100.0, "100"), (True, "True"), (False, "False"), ("true", "true"), ([1, True], "[1, true]"),
        ({"target": 7}, '{"target": 7}'), (2**70, str(2**70)), (1e300, "1e+300"),
    ],
)  # fmt: skip
def test_an_answer_keeps_its_type_beside_its_text(value: object, text: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "answer": value}])
    prompt = source(path).train(0)
    assert prompt.answer == text
    assert prompt.raw_answer == value
    assert type(prompt.raw_answer) is type(value)
    assert prompt.row == {"prompt": "a"}


def test_messages_without_a_chat_template_are_an_error(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [made.VERL_GSM8K])
    assert "row 1: prompt: the prompt is messages, but the model's tokenizer has no chat template" in refused(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "has no rows"),
        (b"\n \n", "has no rows"),
        (b'{"prompt": "a", "answer": "1"}\n\n{"prompt"', "row 3 is not JSON"),
        (b'{"prompt": "\xff", "answer": "1"}', "row 1 is not UTF-8 (invalid start byte)"),
        (b"[" * 100_000, "row 1 is not JSON"),
        (b'{"prompt": "a", "answer": ' + b"1" * 5000 + b"}", "row 1 has an integer of more than 4300 digits"),
        (b'{"prompt": "a", "answer": "1", "answer": "2"}', "row 1 has the name 'answer' twice"),
        (b'{"prompt": "a", "answer": {"x": 1, "x": 2}}', "row 1 has the name 'x' twice"),
        (b'{"prompt": null, "answer": "1"}\n{"prompt": "a"}', "row 1: prompt is empty"),
    ],
)
def test_lines_that_are_no_rows(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert expected in refused(str(tmp_path / "rows.jsonl"))


def test_only_line_feeds_end_a_row_and_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    text = '\ufeff{"prompt": "a\u2028b\x85c", "answer": "1"}\r\n\r\n{"prompt": "d", "answer": "2"}'
    (tmp_path / "rows.jsonl").write_bytes(text.encode())
    rows = JsonlRows(str(tmp_path / "rows.jsonl"))
    assert [row["prompt"] for row in rows] == ["a\u2028b\x85c", "d"]
    assert rows[0]["prompt"] == "a\u2028b\x85c"
    assert (rows[1]["prompt"], rows.number(1)) == ("d", 3)


@given(st.binary(max_size=300) | st.text(max_size=80).map(str.encode))
def test_any_bytes_are_rows_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(content)
    try:
        found = list(rows := JsonlRows(str(path)))
    except DataError as error:
        assert str(error).startswith(f"{path}, row ")
    else:
        assert found == [rows[index] for index in range(len(found))]


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
COLUMNS = st.sampled_from(["prompt", "answer", "input", "label", "reward_model", "images", "x"])


@given(st.lists(st.dictionaries(COLUMNS, VALUES, max_size=5), max_size=4), st.booleans())
def test_any_rows_are_prompts_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, rows: list, needs_answer: bool
) -> None:
    path = write_jsonl(tmp_path_factory.getbasetemp() / "fuzz_rows.jsonl", rows)
    try:
        found = source(path, needs_answer=needs_answer)
    except DataError as error:
        assert path in str(error)
    else:
        assert any(is_prompt(found, index) for index in range(len(rows)))


def is_prompt(found: PromptSource, index: int) -> bool:
    """Whether a prompt of the first epoch can be used; else its row is named."""
    try:
        return len(found.train(index).token_ids) > 0
    except UnusableRow as unusable:
        assert unusable.reason.startswith("row ")
        return False


def test_parquet_that_is_none_or_broken(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    assert "which does not exist" in refused(str(path))
    path.write_bytes(b"PAR1 but no more")
    assert "cannot be read as parquet" in refused(str(path))
    write_parquet(path, [{"prompt": "a" * 2000, "answer": str(n)} for n in range(2000)])
    damaged = bytearray(path.read_bytes())
    damaged[10:400] = b"\0" * 390
    path.write_bytes(damaged)
    assert f"dataset {path} cannot be read" in refused(str(path))


def test_text_in_parquet_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    pa, pq = made.pa, made.pq
    raw = pa.array([b"fine", b"\xff\xfe"], type=pa.binary())
    text = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"prompt": text, "answer": ["1", "2"]}), tmp_path / "rows.parquet")
    assert "row 2 cannot be read: prompt: 'utf-8' codec" in refused(str(tmp_path / "rows.parquet"))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_reading_on_demand_gives_what_reading_at_once_does(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "KEPT_BYTES", 1)
    monkeypatch.setattr(tables, "BATCH", 7)
    monkeypatch.setattr("lpo_ray.tasks.sources.prompt_file.BATCH", 8)
    path = tmp_path / f"rows{suffix}"
    write_parquet(path, SUMS, row_group_size=6) if suffix == ".parquet" else write_jsonl(path, SUMS)
    found = source(str(path), seed=3)
    tokenizer = made.character_tokenizer()
    order = epoch_order(3, 0, len(SUMS))
    for index in range(len(SUMS)):
        prompt, row = found.train(index), SUMS[order[index]]
        assert prompt.prompt_id == f"train-{index:08d}-row-{order[index] + 1}"
        assert prompt.token_ids.tolist() == tokenizer.encode(row["prompt"]).tolist()
        assert (prompt.answer, prompt.row) == (row["answer"], {"level": row["level"], "prompt": row["prompt"]})


def test_row_groups_are_kept_as_far_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ParquetRows(write_parquet(tmp_path / "rows.parquet", SUMS, row_group_size=10))
    assert [rows[index]["answer"] for index in (0, 11, 49)] == ["0", "22", "98"]
    assert len(rows._kept) == 3
    monkeypatch.setattr(tables, "KEPT_BYTES", 1)
    assert rows[25]["answer"] == "50"
    assert len(rows._kept) == 1


def test_neither_texts_nor_token_ids_stay_in_memory(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"{n} " * 100, "answer": "1"} for n in range(2000)])
    size = os.path.getsize(path)
    source(path, max_tokens=10_000, num_train=10)  # what is imported and cached at first use
    tracemalloc.start()
    found = source(path, max_tokens=10_000)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.train(0).answer == "1"
    assert kept < size / 5


def test_a_file_that_is_changed_is_noticed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", SUMS)
    found = source(path)
    write_jsonl(tmp_path / "rows.jsonl", SUMS[1:])
    with pytest.raises(DataError, match="was changed after it was read"):
        found.train(0)


def test_long_prompts_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "x" * n, "answer": "1"} for n in range(1, 11)]
    found = source(write_jsonl(tmp_path / "rows.jsonl", rows), max_tokens=7)
    assert "left out 3 prompts over 7 tokens" in caplog.text
    assert len(found.train_file) == 7
    assert sorted(len(found.train(index).token_ids) for index in range(7)) == list(range(1, 8))
    assert "all 10 prompts of" in refused(str(tmp_path / "rows.jsonl"), max_tokens=0)


def test_the_first_rows_are_the_training_set_where_it_is_limited(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*SUMS, "not a row"])
    assert len(source(path, num_train=5).train_file) == 5
    assert {source(path, num_train=5).position(index).row for index in range(5)} == set(range(1, 6))
    assert "row 51" in refused(path)


def test_each_epoch_is_all_rows_in_an_order_of_its_own_and_a_number_is_the_position(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", SUMS[:7])
    begun, resumed = source(path, seed=5), source(path, seed=5)
    ids = [begun.train(index).prompt_id for index in range(21)]
    assert [resumed.train(index).prompt_id for index in range(9, 21)] == ids[9:]
    orders = [[begun.position(7 * epoch + step).row for step in range(7)] for epoch in range(3)]
    assert all(sorted(order) == list(range(1, 8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert begun.position(16) == (2, 2, orders[2][2])
    assert ids[16] == f"train-00000016-row-{orders[2][2]}"
    assert [source(path, seed=6).train(index).prompt_id for index in range(21)] != ids
    assert not epoch_order(5, 0, 7).flags.writeable


def test_held_out_prompts_that_are_trained_are_an_error(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", SUMS)
    heldout = write_jsonl(tmp_path / "heldout.jsonl", [{"prompt": "new", "answer": "1"}, *SUMS[3:5]])
    said = refused(train, heldout)
    assert f"2 prompts of {heldout} are also in {train}, first row 2, '3 + 3 ='" in said
    assert source(train, heldout, num_train=3).num_alike == 0


def test_prompts_alike_but_for_case_and_space_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [{"prompt": "What  is\n2 + 2?", "answer": "4"}])
    heldout = write_jsonl(tmp_path / "heldout.jsonl", [{"prompt": "what is 2 + 2? ", "answer": "4"}])
    assert source(train, heldout).num_alike == 1
    assert "1 prompts differ from one of" in caplog.text


def test_a_text_and_the_message_that_holds_it_are_the_same_prompt(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [{"prompt": PROMPT, "answer": "4"}])
    heldout = write_jsonl(tmp_path / "heldout.jsonl", [made.TRL_CHAT])
    assert "must not overlap" in refused(train, heldout, tokenizer=chat_tokenizer())


def test_repeated_prompts_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = source(write_jsonl(tmp_path / "rows.jsonl", [*SUMS, *SUMS[:4], SUMS[0]]))
    assert found.train_file.num_duplicates == 5
    assert "5 prompts repeat one before them" in caplog.text


def test_a_long_pass_says_how_far_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lpo_ray.tasks.sources.prompt_file.PROGRESS_SECONDS", -1.0)
    monkeypatch.setattr("lpo_ray.tasks.sources.prompt_file.BATCH", 20)
    caplog.set_level(logging.WARNING)
    source(write_jsonl(tmp_path / "rows.jsonl", SUMS))
    assert [record.getMessage().split(": ")[1][:7] for record in caplog.records] == ["20 rows", "40 rows", "50 rows"]


def test_held_out_prompts_are_the_first_of_their_file(tmp_path: Path) -> None:
    train, heldout = (write_jsonl(tmp_path / f"{n}.jsonl", SUMS[n : n + 5]) for n in (0, 5))
    found = source(train, heldout)
    assert [prompt.answer for prompt in found.heldout(2)] == ["10", "12"]
    with pytest.raises(DataError, match="num_prompts is 6, but there are 5 held-out prompts"):
        found.heldout(6)
    assert source(train).heldout(0) == []


class FakeTable:
    """What ``with_format("arrow")`` of a Hugging Face data set is."""

    def __init__(self, rows: list) -> None:
        self.rows = rows

    def with_format(self, kind: str) -> FakeTable:
        assert kind == "arrow"
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> object:
        return made.pa.Table.from_pylist(self.rows[part])


def test_hugging_face_data_sets_by_name_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Library:
        __version__ = "4.0.0"

        @staticmethod
        def load_dataset(*names: str, split: str) -> FakeTable:
            asked.append((*names, split))
            return FakeTable(SUMS)

    monkeypatch.setitem(__import__("sys").modules, "datasets", Library)
    for path in ("team/sums", "team/sums#test", "team/sums#main/test"):
        rows = open_rows(path)
        assert list(rows) == SUMS
        assert rows[7] == SUMS[7]
    assert asked == [("team/sums", "train"), ("team/sums", "test"), ("team/sums", "main", "test")]


def test_a_folder_of_hugging_face_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    splits = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(SUMS), "test": datasets.Dataset.from_list(SUMS[:3])}
    )
    splits.save_to_disk(str(tmp_path / "both"))
    splits["train"].save_to_disk(str(tmp_path / "one"))
    assert list(open_rows(f"{tmp_path}/both")) == list(open_rows(f"{tmp_path}/one")) == SUMS
    assert list(open_rows(f"{tmp_path}/both#test")) == SUMS[:3]
    with pytest.raises(DataError, match=r"has no split 'dev'; expected its name with one of #train, #test"):
        open_rows(f"{tmp_path}/both#dev")
    assert len(source(f"{tmp_path}/one").train_file) == 50


def test_positions_are_numbers_of_rows_without_those_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * (100 if n % 2 else 5) + str(n), "answer": "1"} for n in range(10)]
    found = source(write_jsonl(tmp_path / "rows.jsonl", rows), max_tokens=50)
    assert {found.position(index).row for index in range(5)} == {1, 3, 5, 7, 9}
    assert found.train_file.kept.dtype == np.int64
