"""Estimators against enumeration, breakdowns, the store, and how answers are read."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lpo_ray.errors import ConfigError, RunBusy
from lpo_ray.evaluation.breakdown import by_column, by_pass_rate, groups_of
from lpo_ray.evaluation.estimators import bootstrap_interval, bootstrap_intervals, entropy, majority
from lpo_ray.evaluation.report import make_report, measure
from lpo_ray.evaluation.results import PromptResult, digest_of
from lpo_ray.evaluation.store import NAME, ResultStore, begun_on
from lpo_ray.evaluation.table import render
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import Conversation, Prompt, PromptGroup, Response, ScoredGroup, Segment
from lpo_ray.tasks.sources.columns import look_up
from lpo_ray.verifiers.answers import answer_of

ANSWERED = st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans()), min_size=1, max_size=9)


@given(ANSWERED)
def test_majority_is_the_mean_over_every_fair_choice(responses: list[tuple[str | None, bool]]) -> None:
    votes = Counter(answer for answer, _ in responses if answer is not None)
    winners = [answer for answer in votes if votes[answer] == max(votes.values())]
    expected = Fraction(0)
    for winner in winners:  # a fair draw of the winner, then of one of its responses
        verdicts = [verdict for answer, verdict in responses if answer == winner]
        expected += Fraction(sum(verdicts), len(verdicts)) / len(winners)
    found = majority([answer for answer, _ in responses], [verdict for _, verdict in responses])
    assert found == pytest.approx(float(expected))


def test_a_response_without_an_answer_has_no_vote() -> None:
    assert majority([None, None, "7"], [False, False, True]) == 1.0
    assert majority([None, None], [True, True]) == 0.0


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12))
def test_entropy_is_between_agreement_and_all_different(answers: list[str]) -> None:
    assert -1e-12 <= entropy(answers) <= np.log(len(set(answers))) + 1e-12
    assert entropy(list(answers) * 3) == pytest.approx(entropy(answers))
    assert entropy([*answers, None]) == entropy(answers)
    assert entropy(list("abcd")) == pytest.approx(np.log(4))


def test_intervals_together_are_those_of_each_alone() -> None:
    values = np.random.default_rng(1).normal(size=(3, 40))
    together = bootstrap_intervals(list(values))
    assert together == [pytest.approx(bootstrap_interval(row)) for row in values]
    with pytest.raises(ValueError, match="an interval over 0 prompts"):
        bootstrap_interval(np.array([]))


def test_the_interval_of_a_majority_covers_the_truth_about_as_often_as_it_says() -> None:
    """Prompts of two kinds, one in three has the right answer in its majority: the truth of the mean is 1/3."""
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        right = rng.random(90) < 1 / 3
        values = np.array([majority(["a", "a", "b"], [bool(good)] * 2 + [not good]) for good in right])
        low, high = bootstrap_interval(values, resamples=400, seed=trial)
        hits += low <= 1 / 3 <= high
    assert 0.90 <= hits / 200 <= 0.99


def prompt(number: int, **row: object) -> Prompt:
    return Prompt(f"heldout-{number:08d}", np.array([number + 1]), "7", "boxed", row)


def result(number: int, rewards: list[float], answers: list[str | None] | None = None) -> PromptResult:
    n = len(rewards)
    asked = prompt(number)
    given_answers = tuple(answers or [f"{reward}" for reward in rewards])
    return PromptResult(
        asked.prompt_id, digest_of(asked), tuple(rewards), given_answers, tuple(range(1, n + 1)),
        ("stop",) * (n - 1) + ("length",), tuple("é" for _ in rewards),
    )  # fmt: skip


def test_measures_by_hand() -> None:
    results = [result(0, [1.0, 0.1, 0.1, 0.1], ["7", "8", "8", None]), result(1, [1.0, 1.0, 0.0, 0.0], list("7789"))]
    found = measure(results, pass_reward=1.0).estimates
    assert found["avg@4"].value == found["pass@1"].value == pytest.approx(0.375)
    assert found["pass@2"].value == pytest.approx((0.5 + 5 / 6) / 2)
    assert found["pass@4"].value == 1.0
    assert found["maj@4"].value == 0.5
    assert found["mean_reward"].value == pytest.approx((0.325 + 0.5) / 2)
    assert found["distinct_answers"].value == 2.5
    assert found["unanswered"].value == 0.125
    assert found["truncated"].value == 0.25
    report = make_report(results, title="", about={"task": "t"}, pass_reward=1.0, lost={"heldout-00000002": "gone"})
    assert report.lengths["correct"].num_responses + report.lengths["wrong"].num_responses == 8
    assert report.lengths["correct"].mean == pytest.approx((1 + 1 + 2) / 3)
    whole = json.loads(json.dumps(report.to_json()))
    assert whole["lost_prompts"] == {"heldout-00000002": "gone"}
    assert whole["num_prompts"] == 2
    assert set(whole["by"]["pass rate"]) == {"to 0.25", "to 0.5"}


def test_a_reward_in_single_precision_passes_at_its_own_value() -> None:
    assert result(0, [float(np.float32(0.1))]).passed(0.1).tolist() == [True]


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4), min_size=1, max_size=20))
def test_every_prompt_is_in_one_bin_of_its_rate(rewards: list[list[float]]) -> None:
    results = [result(number, row) for number, row in enumerate(rewards)]
    bins = by_pass_rate(results, 1.0)
    assert sum(len(members) for members in bins.values()) == len(results)
    assert {r.prompt_id for r in bins.get("0", [])} == {r.prompt_id for r in results if not sum(r.rewards)}
    assert all(sum(r.rewards) == 4 for r in bins.get("1", []))


def test_groups_by_a_column() -> None:
    prompts = [prompt(0, level=2), prompt(1, level=1), prompt(2), prompt(3, level=2)]
    groups = groups_of(prompts, "level")
    assert list(dict.fromkeys(groups.values())) == ["1", "2", "none"]
    members = by_column([result(number, [1.0]) for number in range(4)], groups)
    assert {name: len(found) for name, found in members.items()} == {"1": 1, "2": 2, "none": 1}
    many = [prompt(number, meta={"year": 1900 + number}) for number in range(40)]
    quarters = groups_of(many, "meta.year")
    assert Counter(quarters.values()) == {"1900 to 1909.75": 10, "1909.75 to 1919.5": 10, "1919.5 to 1929.25": 10,
                                          "1929.25 to 1939": 10}  # fmt: skip
    with pytest.raises(
        ConfigError, match="--by is 'size', which no prompt has; expected a column of the data, here le"
    ):
        groups_of(prompts, "size")
    with pytest.raises(ConfigError, match="has 61 different values"):
        groups_of([prompt(number, name=f"n{number}") for number in range(61)], "name")


IDENTITY = {"model": "m", "sampling": {"temperature": 1.0}}
PROMPTS = [prompt(number) for number in range(3)]


def test_the_store_goes_on_after_any_cut(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert begun_on(whole) is None
    with ResultStore(whole, IDENTITY, PROMPTS) as store:
        for number in (1, 0):
            store.append(result(number, [1.0, 0.0]))
    assert begun_on(whole) == date.today().isoformat(), "prompts of the rest are told the same day"
    data = (whole / NAME).read_bytes()
    ends = [place + 1 for place, byte in enumerate(data) if byte == 10]
    for cut in range(len(data) + 1):
        folder = tmp_path / "cut"
        folder.mkdir(exist_ok=True)
        (folder / NAME).write_bytes(data[:cut])
        with ResultStore(folder, IDENTITY, PROMPTS) as store:
            kept = max(sum(end <= cut for end in ends) - 1, 0)
            assert len(store.results) == kept
            for number in (1, 0):
                if not store.is_done(f"heldout-{number:08d}"):
                    store.append(result(number, [1.0, 0.0]))
            assert [found.prompt_id for found in store.results] == ["heldout-00000000", "heldout-00000001"]
        assert (folder / NAME).read_bytes() == data


def test_the_store_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    with ResultStore(tmp_path, IDENTITY, PROMPTS) as store:
        store.append(result(0, [1.0]))
        with pytest.raises(RunBusy, match="is being written by another evaluation"):
            ResultStore(tmp_path, IDENTITY, PROMPTS)
    with pytest.raises(ConfigError, match=r"its model is m, now other.*--out.*--fresh"):
        ResultStore(tmp_path, {**IDENTITY, "model": "other"}, PROMPTS)
    other = Prompt("heldout-00000000", np.array([99]), "7", "boxed")
    with pytest.raises(ConfigError, match="its heldout-00000000 is another prompt"):
        ResultStore(tmp_path, IDENTITY, [other])
    with ResultStore(tmp_path, IDENTITY, [*PROMPTS, prompt(3)]) as store:
        assert len(store.results) == 1
    with ResultStore(tmp_path, {**IDENTITY, "model": "other"}, PROMPTS, fresh=True) as store:
        assert store.results == []


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"prompt_id": "heldout-00000000"}', b"\xff\xfe", b"null"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    with ResultStore(tmp_path, IDENTITY, PROMPTS):
        pass
    with (tmp_path / NAME).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ConfigError, match=r"line 2 is damaged.*--fresh"):
        ResultStore(tmp_path, IDENTITY, PROMPTS)


@pytest.mark.parametrize(
    ("verifier", "one", "other", "same"),
    [
        ("math", r"so \boxed{\frac{1}{2}}", "The answer is 0.5.", True),
        ("math", r"\boxed{1/3}", r"\boxed{0.3333333}", True),
        ("math", r"\boxed{x+1}", r"$\boxed{x + 1}$", True),
        ("math", r"\boxed{12}", r"\boxed{13}", False),
        ("math + 0.2*think_format", r"\boxed{12}", r"then \boxed{12.0}", True),
        ("math", r"\boxed{\{1,2\}}", r"\boxed{2, 1}", True),
        ("math", r"\boxed{x = 1 \text{ or } x = 2}", r"\boxed{\{2,1\}}", True),
        ("math", r"\boxed{x+1}", r"\boxed{1+x}", True),
        ("math", r"\boxed{(x+1)^2}", r"\boxed{x^2+2x+1}", True),
        ("math", r"\boxed{x+1}", r"\boxed{x+2}", False),
        ("math", r"\boxed{(1,2)}", r"\boxed{(2,1)}", False),
        ("math", r"\boxed{(1,2)}", r"\boxed{1,2}", False),
        ("math", r"\boxed{x>5}", r"\boxed{(5,\infty)}", True),
        ("math", r"\boxed{y=2x+3}", r"\boxed{2x+3}", True),
        ("math", r"\boxed{\sqrt{50}}", r"\boxed{5\sqrt2}", True),
        ("math", r"\boxed{\pm 3}", r"\boxed{-3, 3}", True),
        ("math", r"\boxed{1,000}", r"\boxed{1000}", True),
        ("math", r"\boxed{A}", r"\boxed{a}", False),
        ("math", r"<think>\boxed{7}</think> \boxed{8}", r"\boxed{8}", True),
        ("boxed", r"\boxed{0.50}", r"\boxed{\frac12}", True),
        ("boxed", r"<think>\boxed{7}</think> \boxed{8}", r"7?</think>\boxed{8}", True),
        ("geometry", r"\boxed{10010}", r"\boxed{10012}", False),
        ("boxed", r"\boxed{0.50}", r"\boxed{1/2}", True),
        ("countdown", "3*4 - 7 = 5", "<answer>3*4-7</answer>", True),
        ("countdown", "3 × 4 - 7", "<answer>5 = 3*4-7</answer>", True),
        ("countdown", "3*4-7", "4*3-7", False),
        ("geometry", r"\boxed{10\sqrt{2}}", r"\boxed{14.14}", True),
        ("exact", "<answer>a  b</answer>", "a b", True),
        ("token_reversal", "b a", "ba", True),
        ("unit_tests", " print(1)\n", "print(1)", True),
    ],
)
def test_answers_are_read_as_the_verifier_reads_them(verifier: str, one: str, other: str, same: bool) -> None:
    found = answer_of(verifier, one, {})
    assert found is not None
    assert (found == answer_of(verifier, other, {})) is same


def test_choices_and_missing_answers() -> None:
    row = {"choices": ["the sun", "the moon"]}
    assert answer_of("multiple_choice", "It is (B)", row) is None
    assert answer_of("multiple_choice", "Answer: B", row) == answer_of(
        "multiple_choice", "<answer>the moon</answer>", row
    )
    for verifier in ("math", "boxed", "geometry"):
        assert answer_of(verifier, "I do not know \\boxed{", {}) is None
        assert answer_of(verifier, "<think> \\boxed{7}, no,", {}) is None
        assert answer_of(verifier, "\\boxed{7}, no,", {}, prompt="7? <think>\n") is None
        assert answer_of(verifier, "\\boxed{8}, no</think> \\boxed{7}", {}, prompt="7? <think>\n") == "7"
    assert answer_of("judge", "  ", {}) is None


def test_a_column_of_a_list_is_its_number() -> None:
    row = {"final_answer": ["$2$", "$3$"], "meta": {"tags": ["x"]}}
    assert look_up(row, "final_answer.1") == "$3$"
    assert look_up(row, "meta.tags.0") == "x"
    assert look_up(row, "final_answer.2") is None
    assert look_up(row, "final_answer.first") is None


def test_turns_of_conversations_by_hand() -> None:
    """Shares add up to avg@n; a turn in which nothing was solved is 0, not missing."""
    rewards = [[1.0, 0.1, 1.0, 0.1], [1.0, 1.0, 0.0, 0.0]]
    turns = [(1, 3, 3, 2), (1, 1, 3, 3)]
    results = [replace(result(n, row), turns=turns[n]) for n, row in enumerate(rewards)]
    found = measure(results, pass_reward=1.0).estimates
    assert found["turns"].value == pytest.approx((9 / 4 + 8 / 4) / 2)
    assert [found[f"solved_in_turn_{t}"].value for t in (1, 2, 3)] == [3 / 8, 0.0, 1 / 8]
    assert sum(found[f"solved_in_turn_{t}"].value for t in (1, 2, 3)) == found["avg@4"].value
    shown = io.StringIO()
    report = make_report(results, title="", about={}, pass_reward=1.0, lost={})
    Console(file=shown, width=100).print(render(report))
    assert "solved in turn 3" in shown.getvalue()
    assert report.to_json()["ci95"]["turns"]


def test_results_of_single_answers_say_nothing_of_turns() -> None:
    single = result(0, [1.0, 0.0])
    assert "turns" not in single.to_json()
    assert not any("turn" in name for name in measure([single], pass_reward=1.0).estimates)
    talked = replace(single, turns=(2, 1))
    for kept in (single, talked):
        assert PromptResult.from_json(json.loads(json.dumps(kept.to_json()))) == kept
    with pytest.raises(ValueError, match="2 rewards, but 1 turns"):
        replace(single, turns=(2,))
    assert measure([single, talked], pass_reward=1.0).estimates["turns"].value == 1.25


def test_the_answer_of_a_conversation_is_read_from_its_last_turn() -> None:
    class Words:
        """A tokenizer of words."""

        def decode(self, ids: np.ndarray) -> str:
            return " ".join(["a", "b", "c", "tool", "\\boxed{7}", "\\boxed{8}"][number] for number in ids)

    segment = Segment(np.array([5, 1, 3, 3, 4]), np.array([True, True, False, False, True]))
    said = Response(
        np.array([5, 1, 4]), np.zeros(3, np.float32), np.zeros(3, np.int64), "stop", Conversation((segment,), (2, 1))
    )
    alone = Response(np.array([5]), np.zeros(1, np.float32), np.zeros(1, np.int64), "stop")
    group = PromptGroup(prompt(0), 0, (said, alone))
    found = PromptResult.of(ScoredGroup(group, np.ones(2, np.float32)), cast("Tokenizer", Words()))
    assert found.answers == ("7", "8")
    assert found.responses == ("\\boxed{8} b tool tool \\boxed{7}", "\\boxed{8}")
    assert (found.lengths, found.turns) == ((3, 1), (2, 1))
