"""What is read of a request, and what would change the distribution that is sampled."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.agents.endpoint.api_errors import ApiError
from lpo_ray.agents.endpoint.requests import APIS, CHAT, COMPLETIONS, DEEPEST, MESSAGES, RESPONSES, Rules, read, screen
from lpo_ray.records import Sampling

RUN = Sampling(4, 0.8, 64, 0, top_p=0.95, top_k=20, min_p=0.05)
RULES, OVERRIDES = Rules(RUN, 1000), Rules(RUN, 1000, overrides=True)
OTHERS = [
    ("temperature", 0.0), ("temperature", 1), ("temperature", "hot"), ("temperature", True), ("top_p", 1),
    ("top_k", -1), ("top_k", 5), ("min_p", 0), ("presence_penalty", 0.1), ("frequency_penalty", -1),
    ("repetition_penalty", 1.1), ("length_penalty", 2), ("logit_bias", {"1": 5}), ("min_tokens", 3),
    ("bad_words", ["no"]), ("allowed_token_ids", [1]), ("stop_token_ids", [2]), ("ignore_eos", True),
    ("use_beam_search", True), ("structured_outputs", {"choice": ["a"]}), ("guided_json", {"type": "object"}),
    ("response_format", {"type": "json_object"}), ("response_format", {"type": "json_schema", "json_schema": {}}),
    ("text", {"format": {"type": "json_schema"}}), ("output_config", {"format": {"type": "json_schema"}}),
    ("thinking_token_budget", 100), ("vllm_xargs", {"a": 1}),
]  # fmt: skip
NEVER = [
    ("n", 2), ("n", 0), ("best_of", 3), ("echo", True), ("suffix", "x"), ("top_logprobs", 5), ("prompt_logprobs", 1),
    ("background", True), ("previous_response_id", "resp_1"), ("function_call", "auto"), ("functions", [{}]),
    ("chat_template", "{{ 1 }}"), ("modalities", ["audio"]), ("continue_final_message", True),
    ("web_search_options", {"a": 1}),
]  # fmt: skip
FORCED = [
    (CHAT, "required"), (CHAT, {"type": "function", "function": {"name": "add"}}), (RESPONSES, "required"),
    (RESPONSES, {"type": "function", "name": "add"}), (MESSAGES, {"type": "any"}),
    (MESSAGES, {"type": "tool", "name": "add"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), OTHERS)
def test_what_would_change_the_distribution_is_refused_or_decided_by_the_run(name: str, value: object) -> None:
    with pytest.raises(ApiError, match="would change what is sampled") as refused:
        screen(CHAT, {name: value}, RULES)
    assert refused.value.status == 400 and refused.value.param == name and name in str(refused.value.message)
    screened = screen(CHAT, {name: value}, OVERRIDES)
    assert screened.overridden == (name,) and name not in screened.body


@pytest.mark.parametrize(("name", "value"), NEVER)
def test_what_an_agent_counts_on_and_does_not_get_is_always_refused(name: str, value: object) -> None:
    for rules in (RULES, OVERRIDES):
        with pytest.raises(ApiError, match="not available"):
            screen(CHAT, {name: value}, rules)


@pytest.mark.parametrize(("api", "choice"), FORCED)
def test_a_call_that_is_forced_by_a_grammar_is_refused_or_left_to_the_policy(api: object, choice: object) -> None:
    with pytest.raises(ApiError, match="tool_choice"):
        screen(api, {"tool_choice": choice}, RULES)
    screened = screen(api, {"tool_choice": choice}, OVERRIDES)
    assert screened.overridden == ("tool_choice",)
    assert screened.body["tool_choice"] == ({"type": "auto"} if api is MESSAGES else "auto")


def test_what_is_the_runs_own_passes_and_is_not_handed_on() -> None:
    own = {
        "temperature": 0.8, "top_p": 0.95, "top_k": 20, "min_p": 0.05, "n": 1, "presence_penalty": 0.0, "stop": ["a"],
        "frequency_penalty": 0, "logit_bias": {}, "response_format": {"type": "text"}, "tool_choice": "auto",
        "modalities": ["text"], "best_of": None, "user": "me", "a_field_of_next_year": {"b": 1}, "echo": False,
        "parallel_tool_calls": False, "max_tokens": 10, "seed": 3,
    }  # fmt: skip
    screened = screen(CHAT, own, RULES)
    assert screened.overridden == ()
    assert screened.body == {
        "stop": ["a"], "tool_choice": "auto", "parallel_tool_calls": False, "max_tokens": 10, "seed": 3,
        "model": "policy",
    }  # fmt: skip
    for value in (0, -1):
        assert screen(CHAT, {"top_k": value}, Rules(Sampling(1, 1.0, 5, 0), 9)).overridden == ()


def test_an_answer_may_not_be_longer_than_there_is_room_for() -> None:
    assert screen(MESSAGES, {"max_tokens": 32_000}, RULES).body["max_tokens"] == 1000
    assert screen(CHAT, {"max_completion_tokens": 10**30}, RULES).body["max_completion_tokens"] == 1000
    assert screen(RESPONSES, {"max_output_tokens": 5}, RULES).body["max_output_tokens"] == 5


def test_log_probs_are_those_of_the_tokens_that_were_sampled() -> None:
    assert screen(COMPLETIONS, {"logprobs": 1}, RULES).body["logprobs"] == 1
    with pytest.raises(ApiError, match="logprobs=5 is not available"):
        screen(COMPLETIONS, {"logprobs": 5}, RULES)
    assert screen(CHAT, {"logprobs": True, "top_logprobs": 0}, RULES).body["logprobs"] is True


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"3", b"null", b'"a"', b"\xff\xfe", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}',
     b'{"a": "\\ud800"}', b'{"\\ud800": 1}', b'{"a": ' + b"9" * 5000 + b"}", b'{"a":' * 200 + b"1" + b"}" * 200,
     b"[" * 100_000, b'{"a":' * 50_000],
)  # fmt: skip
def test_a_body_that_is_none_is_told_so(raw: bytes) -> None:
    with pytest.raises(ApiError, match="the body is") as refused:
        read(raw)
    assert refused.value.status == 400
    json.dumps(refused.value.body("openai")).encode()
    json.dumps(refused.value.body("anthropic")).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
FIELDS = st.sampled_from([name for name, _ in (*OTHERS, *NEVER)] + [f for api in APIS.values() for f in api.fields])


@given(st.sampled_from(list(APIS.values())), st.dictionaries(FIELDS, JSON, max_size=6), st.booleans())
def test_whatever_is_asked_is_answered_or_refused(api: object, body: dict, overrides: bool) -> None:
    try:
        screened = screen(api, body, OVERRIDES if overrides else RULES)
    except ApiError as error:
        assert error.status == 400
    else:
        assert set(screened.body) <= {*api.fields, "model", "store"}


@given(st.binary(max_size=200))
def test_whatever_bytes_come_are_read_or_refused(raw: bytes) -> None:
    try:
        assert isinstance(read(raw), dict)
    except ApiError as error:
        assert error.status == 400


def test_nesting_is_measured() -> None:
    read(b'{"a":' * (DEEPEST - 1) + b"1" + b"}" * (DEEPEST - 1))
