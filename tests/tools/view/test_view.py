"""The viewer's data and endpoints."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lpo_ray.errors import ConfigError
from lpo_ray.records import TargetGroup
from lpo_ray.tasks.base_policy import character_tokenizer
from lpo_ray.telemetry.samples import samples_path
from lpo_ray.tools.view import group_list as samples
from lpo_ray.tools.view.app import PAGE, build_app, view
from lpo_ray.tools.view.conversation import RecordedConversation
from lpo_ray.tools.view.token_text import by_position, pieces
from tests.support.builders import make_target
from tests.support.recorded_runs import called, make_run, scored, with_columns, write_step
from tests.support.segments import mixed_group

LARGE = 2 * 10**6
"""tokens"""


def client(root: Path) -> TestClient:
    return TestClient(build_app(root), base_url="http://127.0.0.1:1234", raise_server_exceptions=False)


def ask(root: Path, path: str, **parameters: Any) -> Any:
    answer = client(root).get(f"/api/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def listed(root: Path, **parameters: Any) -> list[tuple[int, list[float]]]:
    return [(group["step"], group["rewards"]) for group in ask(root, "groups", run=".", **parameters)["groups"]]


def key_of(root: Path, **parameters: Any) -> dict[str, Any]:
    group = ask(root, "groups", run=".", **parameters)["groups"][0]
    return {"run": ".", **{name: group[name] for name in ("step", "prompt_id", "attempt")}}


def test_runs_are_found_in_folders_of_folders_and_say_where_they_are(tmp_path: Path) -> None:
    make_run(tmp_path / "single")
    make_run(tmp_path / "compared" / "arm" / "0", steps=1, name="arm 0")
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "single")
    runs = ask(tmp_path, "runs")
    assert [(run["run"], run["name"], run["state"], run["step"], run["steps"]) for run in runs] == [
        ("compared/arm/0", "arm 0", "ended", 1, 1),
        ("single", "tried", "ended", 2, 2),
    ]
    assert runs[1]["task"] == "countdown"
    assert runs[1]["last"] == {"reward": 0.2, "token_entropy": 0.5}
    assert (runs[1]["first_sample"], runs[1]["last_sample"], runs[1]["num_samples"]) == (1, 2, 2)
    assert [run["run"] for run in ask(tmp_path / "single", "runs")] == ["."]


def test_groups_are_filtered_by_each_of_their_properties(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    mixed, none, every = [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]
    assert listed(run) == [(2, mixed), (2, none), (2, every), (1, mixed), (1, none), (1, every)]
    assert listed(run, mixed=True) == [(2, mixed), (1, mixed)]
    assert listed(run, least_reward=0.5, most_reward=0.5) == [(2, mixed), (1, mixed)]
    assert listed(run, least_reward=0.75, last=1) == [(1, every)]
    assert listed(run, least_staleness=1, first=2) == [(2, every)]
    assert listed(run, most_staleness=0, first=2) == [(2, mixed), (2, none)]
    assert listed(run, verifier="countdown", first=2) == [(2, mixed), (2, none), (2, every)]
    assert listed(run, verifier="maths") == []
    assert listed(run, order="reward") == [(2, every), (1, every), (2, mixed), (1, mixed), (2, none), (1, none)]
    assert listed(run, order="step", ascending=True, mixed=True) == [(1, mixed), (2, mixed)]
    assert listed(run, measured=True) == []
    with_columns(samples_path(run, 2), {"after": [0.1, 0.2, None, None, 0.0, 0.0]})
    assert listed(run, measured=True) == [(2, mixed), (2, every)]
    for ascending in (False, True):
        moved = [group["moved"] for group in ask(run, "groups", run=".", order="moved", ascending=ascending)["groups"]]
        assert moved[:2] == sorted(moved[:2], reverse=not ascending)
        assert moved[2:] == [None] * 4, "groups that were not measured come last"
    assert ask(run, "groups", run=".")["verifiers"] == ["countdown"]


def test_text_is_found_in_prompt_response_answer_and_detail_whatever_the_case(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    blank = [""] * 6
    with_columns(
        samples_path(run, 1),
        {
            "prompt": ["Straße"] * 2 + blank[2:],
            "response": [*blank[:3], "Two (2 ", *blank[4:]],
            "answer": [*blank[:4], "x", "x"],
            "detail": [None, None, None, None, "value 21", "Value 22"],
        },
    )
    for text, rewards in {"STRASSE": [1.0, 0.0], "(2 ": [0.0, 0.0], "value 22": [1.0, 1.0], "X": [1.0, 1.0]}.items():
        assert listed(run, text=text) == [(1, rewards)], text
    assert listed(run, text="none") == [], "a null has no text"


def test_pages_and_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for step in (1, 2, 3):
        write_step(run, step, [scored(n, (1.0, 0.0)) for n in range(30)])
    monkeypatch.setattr(samples, "MOST_FILES", 2)
    first, last, beyond = (ask(run, "groups", run=".", page=page) for page in (0, 1, 99))
    assert (first["total"], first["pages"], len(first["groups"]), len(last["groups"])) == (60, 2, 50, 10)
    assert (first["read"], first["left"]) == ([3, 2], [1])
    assert beyond == last
    older = ask(run, "groups", run=".", last=1)
    assert (older["read"], older["total"]) == ([1], 30)


def test_a_group_has_the_policy_before_and_after_its_step(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    path = samples_path(run, 1)
    with_columns(
        path,
        {
            "log_ratio": [0.3, 0.1, 0, 0, 0, 0],
            "anchor": [0.2, 0.0, 0, 0, 0, 0],
            "tempering": [0.25, 0.25, 1, 1, 1, 1],
            "after": [0.15 + math.log(3), 0.0, None, None, None, None],
            "token_log_ratio": [[0.5, -0.5, 0.0, 0.1]] * 2 + [None] * 4,
            "detail": ["right", None, None, None, None, None],
        },
    )
    group = ask(run, "group", **key_of(run, mixed=True))
    before, after = ([response[name] for response in group["responses"]] for name in ("policy_before", "policy_after"))
    assert after == pytest.approx([0.75, 0.25]), "s minus (1 - tempering) anchor = log 3 and 0"
    odds = math.exp(0.3 - 0.75 * 0.2 - 0.1)
    assert before == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])
    assert [response["detail"] for response in group["responses"]] == ["right", None]
    assert 0.49 < group["scale"] <= 0.5
    assert group["responses"][0]["versions"] == [[0, 4]]
    other = ask(run, "group", **key_of(run, most_reward=0))
    assert other["scale"] is None
    assert [response["policy_after"] for response in other["responses"]] == [None, None]


def test_what_is_not_there_is_said_and_nothing_outside_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "one")
    make_run(tmp_path / "secret")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "secret")
    for name in (
        "../secret",
        "link",
        str(tmp_path / "secret"),
        "no",
        "\0",
        "x" * 5000,
        "one/samples/step_000001.parquet",
    ):
        answer = client(tmp_path / "runs").get("/api/run", params={"run": name})
        assert answer.status_code == 404, name
        assert "expected one of those that the page lists" in answer.json()["error"]
    for path in ("/../secret/status.json", "/%2e%2e/app.py", "/..%2fapp.py", "/docs", "/openapi.json"):
        assert client(run).get(path).status_code == 404, path
    gone = client(run).get("/api/group", params={**key_of(run), "prompt_id": "nobody"})
    assert (gone.status_code, "has no such rows" in gone.json()["error"]) == (404, True)
    gone = client(run).get("/api/tokens", params={**key_of(run), "response": 9})
    assert (gone.status_code, "has no response 9; it has 2" in gone.json()["error"]) == (404, True)
    assert client(run).get("/api/groups", params={"run": ".", "order": "colour"}).status_code == 422
    with pytest.raises(ConfigError, match="has no runs; expected the folder of a run"):
        view(tmp_path / "runs" / "one" / "samples", 0)


def test_only_this_machine_is_answered_and_nothing_may_be_loaded_from_elsewhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for host, status in {
        "127.0.0.1:9": 200,
        "localhost:9": 200,
        "evil.example": 400,
        "127.0.0.1.evil.example": 400,
    }.items():
        for path in ("/", "/api/runs"):
            assert client(run).get(path, headers={"host": host}).status_code == status, host
    for path in ("/", "/main.js", "/api/runs", "/api/run?run=no"):
        headers = client(run).get(path).headers
        assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
    assert client(run).post("/api/runs").status_code == 405
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text
        assert "insertAdjacentHTML" not in text


def test_a_run_that_grows_is_read_at_every_moment(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    whole = samples_path(run, 1).read_bytes()
    growing = samples_path(run, 2)
    for size in (0, 3, 4, 100, len(whole) // 2, len(whole) - 1):
        growing.write_bytes(whole[:size])
        listing = ask(run, "groups", run=".")
        assert [group["step"] for group in listing["groups"]] == [1, 1, 1]
        assert "step_000002.parquet cannot be read" in listing["unreadable"]["2"]
    growing.write_bytes(whole)
    assert [group["step"] for group in ask(run, "groups", run=".")["groups"]] == [2, 2, 2, 1, 1, 1]
    for name in ("metrics.jsonl", "log.jsonl", "evaluations.json", "status.json", "summary.json", "config.yaml"):
        with (run / name).open("ab") as file:
            file.write(b'{"step": 2, "rew\xff')
        for path in ("run", "log", "groups"):
            ask(run, path, run=".")
        ask(run, "curves", run=".")
    assert ask(run, "run", run=".")["step"] == 1
    assert ask(run, "log", run=".")[0]["text"].endswith("driver - 1 the end")


def test_questions_at_the_same_time_as_writing_get_whole_answers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    over = threading.Event()

    def write() -> None:
        for step in range(2, 12):
            write_step(run, step, [scored(step, (1.0, 0.0))])
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [0]
    while not over.is_set():
        listing = ask(run, "groups", run=".", page=0)
        assert listing["unreadable"] == {}
        seen.append(listing["total"])
        ask(run, "curves", run=".")
    writer.join()
    assert seen == sorted(seen)
    assert ask(run, "groups", run=".")["total"] == 13


def test_curves_are_thinned_and_keep_the_last_step_and_what_is_not_finite(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    lines = [json.dumps({"step": step, "reward": step / 2}) for step in range(1, 1001)]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1001, "reward": NaN, "pass_rate": Infinity}']))
    charts = {chart["title"]: chart for chart in ask(run, "curves", run=".")}
    reward = charts["Reward"]
    assert reward["steps"][:2] == [1, 4]
    assert (len(reward["steps"]), reward["steps"][-1]) == (335, 1001)
    values = {series["label"]: series["values"] for series in reward["series"]}
    assert (values["mean reward"][1], values["mean reward"][-1]) == (2.0, "NaN")
    assert (values["pass rate"][0], values["pass rate"][-1]) == (None, "Infinity")
    evaluated = charts["Pass@k on held-out prompts"]
    assert (evaluated["steps"], evaluated["series"][0]["low"]) == ([0], [0.125])


def test_hostile_values_come_through_as_they_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    hostile = "<script>alert(1)</script>\u202e\x00\ufffd"
    nan, infinite = math.nan, math.inf
    with_columns(
        samples_path(run, 1),
        {
            "prompt": [hostile] * 6,
            "prompt_id": [hostile] * 6,
            "attempt": [0, 0, 1, 1, 2, 2],
            "reward": [nan, 1.0, infinite, -infinite, 0.0, 1.0],
            "log_ratio": [nan, 0.0, infinite, 0.0, None, 0.0],
            "log_target": [-infinite, 0.0, nan, nan, 0.0, 0.0],
            "versions": [[], [], None, [1], [-(2**40)], [2**40]],
            "token_log_ratio": [[nan], [infinite], None, [], [1e300], [0.0]],
        },
    )
    listing = ask(run, "groups", run=".", order="reward")
    assert [group["prompt_id"] for group in listing["groups"]] == [hostile] * 3
    assert {str(group["reward"]) for group in listing["groups"]} == {"0.5", "NaN"}
    for group in listing["groups"]:
        found = ask(run, "group", run=".", step=1, prompt_id=hostile, attempt=group["attempt"])
        assert found["prompt"] == hostile
    (run / "status.json").write_text(
        json.dumps({"run": "\ud800<img>", "steps": "many", "pid": {}, "ended": 0, "host": 1})
    )
    info = ask(run, "run", run=".")
    assert (info["name"], info["steps"]) == ("\ud800<img>", None)
    assert (
        client(run)
        .get("/api/group", params={**key_of(run), "prompt_id": "\ud800".encode(errors="replace")})
        .status_code
        == 404
    )


@pytest.mark.parametrize(
    "content", ["[1]", "null", "{", '{"0": {"pass@1": "x", "ci95": 3}, "-1": 2, "³": 1}', "[" * 10**5]
)
def test_json_of_another_shape_is_no_error_and_the_samples_are_shown(content: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    for name in ("metrics.jsonl", "evaluations.json", "status.json", "summary.json", "config.yaml", "log.jsonl"):
        (run / name).write_text(content)
    info = ask(run, "run", run=".")
    assert (info["state"], info["step"], info["steps"], info["last"]) == ("not known", 0, None, {})
    assert not any(value is not None for curve in ask(run, "curves", run=".") for value in curve["series"][0]["values"])
    assert ask(run, "log", run=".") == []
    assert [one["num_samples"] for one in ask(run, "runs")] == [1]
    assert len(ask(run, "groups", run=".")["groups"]) == 3


def test_files_of_other_columns_are_said_to_be_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3)
    pq.write_table(pq.read_table(samples_path(run, 1)).drop_columns(["anchor"]), samples_path(run, 1))
    with_columns(samples_path(run, 2), {"reward": ["much"] * 6})
    with_columns(samples_path(run, 3), {"versions": ["old"] * 6})
    unreadable = ask(run, "groups", run=".")["unreadable"]
    assert "has no anchor; expected samples as lpo-ray train writes them" in unreadable["1"]
    assert "column reward is string; expected numbers" in unreadable["2"]
    assert "column versions is string; expected lists of numbers" in unreadable["3"]


def test_a_very_long_response_comes_in_parts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_step(
        run, 1, [scored(0, (1.0, 0.0), tokens=100_000)], decode=lambda ids: "".join(chr(97 + i % 26) for i in ids)
    )
    key = {**key_of(run), "response": 1}
    parts = [ask(run, "tokens", **key, start=start) for start in (0, 2_000, 98_000, 100_000, 10**9)]
    assert [len(part["texts"]) for part in parts] == [2_000, 2_000, 2_000, 0, 0]
    response = pq.read_table(samples_path(run, 1))["response"][1].as_py()
    assert "".join(parts[1]["texts"]) == response[2_000:4_000]
    assert (parts[0]["exact"], parts[0]["log_ratio"], parts[0]["total"]) == (False, None, 100_000)
    assert len(client(run).get("/api/group", params=key_of(run)).content) < 10_000


def test_the_runs_tokenizer_gives_the_texts_of_tokens_only_where_it_is_the_right_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tokenizer = character_tokenizer()
    tokenizer.save(run / "checkpoints" / "step_000001" / "policy")
    write_step(run, 1, [scored(0, (1.0, 0.0))], decode=tokenizer.decode)
    key = {**key_of(run), "response": 0}
    found = ask(run, "tokens", **key)
    assert found["exact"]
    assert found["texts"] == [tokenizer.show(np.array([token])) for token in found["ids"]]
    newest = run / "checkpoints" / "step_000002" / "policy" / "tokenizer.json"
    newest.parent.mkdir(parents=True)
    newest.write_text("{}")
    assert ask(run, "tokens", **key)["exact"] is False, "a file that is no tokenizer"
    (run / "config.yaml").write_text(f"model: {{path: {run}/checkpoints/step_000001/policy}}")
    assert ask(run, "tokens", **key) == found, "the model that the run began with"
    with_columns(samples_path(run, 1), {"response": ["something else"] * 2})
    other = ask(run, "tokens", **key)
    assert (other["exact"], "".join(other["texts"])) == (False, "something else")


def byte_tokenizer() -> Tokenizer:
    """One token for each byte, as byte-level models fall back to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer


BYTES = byte_tokenizer()


@given(st.text(max_size=30), st.integers(0, 40), st.integers(0, 40))
def test_pieces_of_any_text_are_the_text_and_do_not_depend_on_where_a_part_begins(
    text: str, one: int, other: int
) -> None:
    ids = np.array(BYTES.encode(text).ids, dtype=np.int64)
    whole = pieces(lambda some: BYTES.decode(some.tolist()), ids, 0, len(ids))
    assert len(whole) == len(ids)
    assert "".join(whole) == BYTES.decode(ids.tolist())
    start, stop = sorted((min(one, len(ids)), min(other, len(ids))))
    if "\ufffd" not in text:
        assert pieces(lambda some: BYTES.decode(some.tolist()), ids, start, stop) == whole[start:stop]


@given(st.lists(st.integers(0, 255), max_size=24))
def test_bytes_that_are_no_text_give_a_piece_for_each_token(ids: list[int]) -> None:
    found = pieces(lambda some: BYTES.decode(some.tolist()), np.array(ids, dtype=np.int64), 0, len(ids))
    assert len(found) == len(ids)


@given(st.text(max_size=50), st.integers(0, 80))
def test_texts_by_position_are_the_text(text: str, tokens: int) -> None:
    found = by_position(text, tokens, 0, tokens)
    assert len(found) == tokens
    if tokens:
        assert "".join(found) == text


def talked(folder: Path) -> tuple[Path, TargetGroup]:
    """A run whose only group has conversations among its responses, with the tokenizer of its texts."""
    folder.mkdir(parents=True)
    tokenizer = character_tokenizer()
    tokenizer.save(folder / "model")
    group = mixed_group(0, vocabulary=30)
    target = make_target(0, [len(response.token_ids) for response in group.responses])
    target = replace(target, scored=replace(target.scored, group=group))
    write_step(folder, 1, [target], tokenizer.decode)
    (folder / "config.yaml").write_text(f"task: {{name: countdown}}\nmodel: {{path: {folder / 'model'}}}\n")
    return folder, target


def test_a_conversation_is_read_as_one(tmp_path: Path) -> None:
    run, target = talked(tmp_path / "run")
    assert [len(group["rewards"]) for group in ask(run, "groups", run=".")["groups"]] == [4], "a row is a segment"
    key = key_of(run)
    group = ask(run, "group", **key)
    assert [response["tokens"] for response in group["responses"]] == [3, 6, 9, 5]
    facts = [response["conversation"] for response in group["responses"]]
    assert facts[0] is None
    assert facts[1] == {
        "turns": 3,
        "ended": "turns",
        "environment_tokens": 6,
        "environment_seconds": 0.25,
        "segments": 1,
        "moved": 0,
        "redrawn": 0,
        "dropped": 0,
    }
    assert [facts[3][name] for name in ("moved", "redrawn", "dropped")] == [1, 2, 7]
    assert (facts[3]["ended"], facts[3]["segments"]) == ("tokens", 2)
    one = ask(run, "tokens", **key, response=1)
    conversation = target.group.responses[1].conversation
    assert conversation is not None
    (segment,) = conversation.segments
    assert one["ids"] == segment.token_ids.tolist()
    assert [version is not None for version in one["versions"]] == segment.sampled.tolist()
    assert [value is not None for value in one["behaviour"]] == segment.sampled.tolist()
    assert [(mark["at"], mark["kind"], mark["text"], mark["tokens"]) for mark in one["marks"]] == [
        (0, "turn", "1", 2), (2, "author", "tool", 4), (6, "turn", "2", 3), (9, "author", "user", 2),
        (11, "turn", "3", 1),
    ]  # fmt: skip
    single = ask(run, "tokens", **key, response=0)
    assert (single["marks"], single["ids"]) == ([], target.group.responses[0].token_ids.tolist())
    other = ask(run, "tokens", **key, response=3)
    begun = next(mark for mark in other["marks"] if mark["kind"] == "segment")
    assert (begun["at"], begun["text"], begun["tokens"]) == (2, "compaction", 6)
    assert one["exact"] and begun["context"]
    assert [mark["kind"] for mark in other["marks"]] == ["turn", "segment", "author", "turn"]


def test_a_part_of_a_conversation_has_the_marks_within_it(tmp_path: Path) -> None:
    run, _ = talked(tmp_path / "run")
    key = key_of(run)
    whole = ask(run, "tokens", **key, response=2)
    part = ask(run, "tokens", **key, response=2, start=4)
    assert part["ids"] == whole["ids"][4:]
    assert part["marks"] == [mark for mark in whole["marks"] if mark["at"] >= 4]
    assert listed(run, text="no such text") == []


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=6), st.integers(0, 40),
    st.integers(1, 40),
)  # fmt: skip
def test_marks_say_of_every_token_who_wrote_it(turns: list[tuple[int, int]], start: int, size: int) -> None:
    """Also where an environment said nothing between two turns, and in any part of the conversation."""
    sizes, replies = [turn for turn, _ in turns], [reply for _, reply in turns]
    mask = np.concatenate([np.repeat([True, False], pair) for pair in zip(sizes, [*replies[:-1], 0], strict=True)])
    facts = {"turns": sizes, "authors": [f"author {n}" for n in range(len(turns) - 1)], "began": ""}
    recorded = RecordedConversation([facts], [np.arange(len(mask))], [mask], [None], ["hermes"])
    found = recorded.marks(start, start + size, str)
    expected, at = [], 0
    for number, (turn, reply) in enumerate(turns):
        expected.append((at, "turn", str(number + 1), turn))
        at += turn
        if reply and number + 1 < len(turns):
            expected.append((at, "author", f"author {number}", reply))
            at += reply
    assert [(m.at, m.kind, m.text, m.tokens) for m in found] == [e for e in expected if start <= e[0] < start + size]
    assert recorded.spread(list(range(sum(sizes))), start, start + size) == [
        int(np.count_nonzero(mask[:at])) if mask[at] else None for at in range(min(start, at), min(start + size, at))
    ]


def test_tool_calls_that_were_answered_are_shown_and_what_only_looks_like_one_is_not(tmp_path: Path) -> None:
    run = called(tmp_path / "run", ("37*4=[37*4]", "148\n"), ("37*4=[1+1", "00"), ("=148", ""))
    marks = ask(run, "tokens", **key_of(run), response=0)["marks"]
    assert [(mark["kind"], mark["text"], mark["calls"]) for mark in marks] == [
        ("turn", "1", ["37*4"]), ("author", "tool", []), ("turn", "2", []), ("author", "tool", []), ("turn", "3", []),
    ]  # fmt: skip


def test_a_result_of_any_size_is_sent_a_part_at_a_time(tmp_path: Path) -> None:
    """Of 10 MB, at the 5 bytes that a token of a real vocabulary has, the page gets what it shows, and the end, too."""
    run = called(tmp_path / "run", ("12=[3*4]", "7" * LARGE), ("=12", ""))
    key = key_of(run)
    started = time.monotonic()
    group = ask(run, "group", **key)
    assert group["responses"][0]["conversation"]["environment_tokens"] == LARGE
    first = ask(run, "tokens", **key, response=0)
    last = ask(run, "tokens", **key, response=0, start=LARGE)
    assert time.monotonic() - started < 20
    assert (len(first["ids"]), first["total"]) == (2000, LARGE + 8 + 3)
    assert [(mark["kind"], mark["tokens"]) for mark in first["marks"]] == [("turn", 8), ("author", LARGE)]
    assert "".join(last["texts"]).endswith("7=12")
    assert [mark["at"] for mark in last["marks"]] == [LARGE + 8]
    assert max(len(json.dumps(found)) for found in (group, first, last)) < 10**6


def test_columns_of_something_else_are_named(tmp_path: Path) -> None:
    run = called(tmp_path / "run", ("12=[3*4]", "12"), ("=12", ""))
    with_columns(samples_path(run, 1), {"segment_ids": ["no list"]})
    answer = client(run).get("/api/group", params=key_of(run))
    assert answer.status_code == 404
    assert "has conversations that cannot be read" in answer.json()["error"]


def test_a_conversation_without_a_tokenizer_is_cut_by_position(tmp_path: Path) -> None:
    run, target = talked(tmp_path / "run")
    (run / "config.yaml").write_text("task: {name: countdown}\nmodel: {path: null}\n")
    found = ask(run, "tokens", **key_of(run), response=3)
    assert not found["exact"]
    assert len(found["texts"]) == len(found["ids"]) == 6
    assert next(mark for mark in found["marks"] if mark["kind"] == "segment")["context"] is None
    assert target.group.key == ("train-00000000", 0)
