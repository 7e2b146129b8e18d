"""Tool calls as models write them, also badly; the same as vLLM's parsers find where both find something."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.agents.tools.calls import LONGEST_CALL, MAX_CALLS, PARSERS, parse, parser_for
from tests.support.chat_tokenizers import CHATML, LLAMA_3, MISTRAL, QWEN3

ADD = ("add", {"a": 1, "b": 2})
HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def functions(parser: str, text: str) -> list[tuple[str, object]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in parse(parser, text)[1]]


@pytest.mark.parametrize(
    ("parser", "text", "before", "expected"),
    [
        ("hermes", f"I add. {HERMES}", "I add.", [ADD]),
        ("hermes", f"{HERMES}\n{HERMES}", "", [ADD, ADD]),
        ("hermes", f"<think>{HERMES}</think>12", None, []),
        ("hermes", f"<think>I call {HERMES}", None, []),
        ("hermes", f"<think>x</think>{HERMES}", "", [ADD]),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}', "", [ADD]),
        ("hermes", '<tool_call>{"name": "add"}</tool_call>', "", [("add", {})]),
        ("hermes", "<tool_call>{oh no}</tool_call>", "", [("", "{oh no}")]),
        ("hermes", '<tool_call>["add"]</tool_call>', "", [("", '"add"')]),
        ("hermes", '<tool_call>{"name": 5}</tool_call>', "", [("", '{"name": 5}')]),
        ("hermes", "no call", None, []),
        ("llama3_json", '{"name": "add", "parameters": {"a": 1, "b": 2}}', "", [ADD]),
        ("llama3_json", '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": 2}}<|eom_id|>', "", [ADD]),
        ("llama3_json", '{"name": "add", "arguments": {"a": 1, "b": 2}}; {"name": "sub", "parameters": {}}', "",
         [ADD, ("sub", {})]),
        ("llama3_json", '{"name": "add", ', "", [("", '{"name": "add",')]),
        ("llama3_json", '{"answer": 5}', None, []),
        ("llama3_json", '{"name": "Bob", "age": 3}', None, []),
        ("llama3_json", 'I add: {"name": "add", "parameters": {"a": 1, "b": 2}}', "I add:", [ADD]),
        ("llama3_json", '{"name": "add", "parameters": {"a": 1, "b": 2}} So.', "", [ADD]),
        ("llama3_json", '[{"name": "add", "parameters": {"a": 1, "b": 2}}]', "[", [ADD]),
        ("llama3_json", 'For {x} I add {"name": "add", "parameters": {"a": 1, "b": 2}}', "For {x} I add", [ADD]),
        ("llama3_json", '{"name": "add", "parameters": {"a": {"name": "x", "parameters": {}}}}', "",
         [("add", {"a": {"name": "x", "parameters": {}}})]),
        ("llama3_json", "It is 5.", None, []),
        ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": 2}}]', "", [ADD]),
        ("mistral", '[TOOL_CALLS]add{"a": 1, "b": 2}[TOOL_CALLS]sub[ARGS]{}', "", [ADD, ("sub", {})]),
        ("mistral", "[TOOL_CALLS]add{oh", "", [("add", "{oh")]),
        ("mistral", "It is 5.", None, []),
        ("pythonic", "[add(a=1, b=2), sub()]", "", [ADD, ("sub", {})]),
        ("pythonic", "[add(1, 2)]", "", [("", "add(1, 2)")]),
        ("pythonic", "[add(a=__import__('os'))]", "", [("add", "add(a=__import__('os'))")]),
        ("pythonic", "[add(a=1", None, []),
        ("pythonic", "[add(a=[true, {'b': null}], c=False)]", "", [("add", {"a": [True, {"b": None}], "c": False})]),
        ("pythonic", "[add(**{'a': 1})]", "", [("add", "add(**{'a': 1})")]),
        ("pythonic", "[1, 2]", None, []),
        ("brackets", "[12*34]", "", [("", {"": "12*34"})]),
        ("brackets", "I say [12*34] and [5]", "I say", [("", {"": "12*34"})]),
        ("brackets", "[[1]]", "[", [("", {"": "1"})]),
        ("brackets", "12*34]", None, []),
    ],
)  # fmt: skip
def test_calls_are_found(parser: str, text: str, before: str | None, expected: list) -> None:
    assert functions(parser, text) == expected
    assert parse(parser, text)[0] == (text if before is None else before)


@pytest.mark.parametrize("parser", PARSERS)
@given(st.text(st.sampled_from("[](){}<>\"':,=ab1 \\|_/\n") | st.characters(), max_size=60))
def test_any_text_is_read_without_an_error_into_what_json_can_hold(parser: str, text: str) -> None:
    for prefix in ("", "<tool_call>", "[TOOL_CALLS]", '{"name"', "[f("):
        before, calls = parse(parser, prefix + text)
        assert isinstance(before, str) and len(calls) <= MAX_CALLS
        json.dumps(calls)


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    "part", ["[", "{", "(", "<tool_call>", "[TOOL_CALLS]", '{"a":', "-", "[f(a=", "; ", "<think>", "<|a"]
)
def test_no_text_costs_much_time(parser: str, part: str) -> None:
    started = time.process_time()
    for prefix in ("", "[f(a=", '{"name": ', "<tool_call>"):
        parse(parser, prefix + part * (LONGEST_CALL // len(part)) + "]")
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (QWEN3, "hermes"), (LLAMA_3, "llama3_json"), (MISTRAL, "mistral"), (CHATML, "hermes"), (None, "brackets"),
        ("[func_name1(params_name1=params_value1)]", "pythonic"),
    ],
)  # fmt: skip
def test_a_template_says_how_calls_are_written(template: str | None, expected: str) -> None:
    assert parser_for(template) == expected


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    ("opened", "closed"),
    [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]"), ("1+", ""), ("not ", ""), ("-", ""), ("a.", ""), ("lambda:", "")],
)
def test_what_is_read_of_a_call_can_be_shown_and_written_wherever_it_goes(
    parser: str, opened: str, closed: str
) -> None:
    """However deep it is nested: also far down a stack, and with what others put around it."""

    def used_below(frames: int, calls: list) -> None:
        if frames:
            used_below(frames - 1, calls)
            return
        assert json.loads(json.dumps({"answer": {"calls": calls}}))["answer"]["calls"] == calls and repr(calls)

    for depth in (*range(1, 70, 7), 64, 65, 190, 500, *range(940, 1000, 7), 3000):
        deep = f"{opened * depth}1{closed * depth}"
        for form in (
            '<tool_call>{"name": "f", "arguments": {"a": %s}}</tool_call>', "<tool_call>%s</tool_call>",
            '{"name": "f", "parameters": {"a": %s}}', '[TOOL_CALLS][{"name": "f", "arguments": %s}]',
            "[TOOL_CALLS]f%s", "[f(a=%s)]", "[%s]", "[f(), %s]",
        ):  # fmt: skip
            _, calls = parse(parser, form % deep)
            used_below(300, [call for call in calls if call["function"]["arguments"]])


def test_what_is_nested_as_arguments_are_is_read() -> None:
    deep: object = 1
    for _ in range(20):
        deep = [{"a": deep}]
    call = json.dumps({"name": "add", "arguments": {"a": deep}})
    assert functions("hermes", f"<tool_call>{call}</tool_call>") == [("add", {"a": deep})]
