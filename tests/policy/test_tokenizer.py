"""What a tokenizer puts around texts and conversations, in the shapes of published models."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest

from lpo_ray.policy.tokenizer import ChatStyle, Tokenizer
from tests.support.chat_tokenizers import CHATML, DATED, LLAMA_2, byte_tokenizer

USER = [{"role": "user", "content": "2+3?"}]


def texts(tokenizer: Tokenizer, *ids: int | None) -> list[str]:
    return [tokenizer.show(np.array([token])) for token in ids if token is not None]


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        ((), (), []),
        (("<bos>",), (), ["<bos>"]),
        (("<bos>",), ("</s>",), ["<bos>"]),
        ((), ("</s>",), []),
        (("<bos>", "<|im_start|>"), (), ["<bos>", "<|im_start|>"]),
    ],
)
def test_the_tokens_before_every_text_are_found(begin: tuple[str, ...], end: tuple[str, ...], expected: list) -> None:
    tokenizer = byte_tokenizer(begin=begin, end=end)
    assert texts(tokenizer, *tokenizer.begin_ids) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["<|im_end|>"]),
        (LLAMA_2, ["<|endoftext|>"]),
        (DATED, []),
        ("{{ messages[0]['content'] }}", []),
        ("{% for m in messages %}{{ m['content'] }}\n\nHuman:{% endfor %}", []),
        ("{{ raise_exception('no assistant here') }}", []),
        ("{{ messages[1]['content'] }} \n</s><|im_end|>", ["</s>"]),
        ({"tool_use": CHATML}, []),
        ({"tool_use": DATED, "default": CHATML}, ["<|im_end|>"]),
    ],
)
def test_the_special_token_after_the_assistants_turn_is_found(template: str, expected: list[str]) -> None:
    tokenizer = byte_tokenizer(template)
    assert texts(tokenizer, tokenizer.end_of_turn(ChatStyle())) == expected
    assert texts(byte_tokenizer(), byte_tokenizer().end_of_turn(ChatStyle(CHATML))) == ["<|im_end|>"]


def test_a_template_is_told_one_day_whenever_it_asks() -> None:
    tokenizer = byte_tokenizer(DATED)
    assert tokenizer.render(USER).startswith("Today Date: 26 Jul 2024\n")
    assert tokenizer.render(USER, ChatStyle(date=datetime(2026, 11, 30))).startswith("Today Date: 30 Nov 2026\n")


def test_variables_of_the_template_are_passed_and_others_are_named() -> None:
    tokenizer, style = byte_tokenizer(CHATML), ChatStyle(variables={"enable_thinking": False})
    assert tokenizer.render(USER).endswith("<|im_start|>assistant\n")
    assert tokenizer.render(USER, style).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.unknown_variables(style) == []
    assert tokenizer.unknown_variables(ChatStyle(variables={"enable_thinkin": False})) == ["enable_thinkin"]
    tracked = ChatStyle("{% generation %}{% endgeneration %}", {"anything": 1})
    assert tokenizer.unknown_variables(tracked) == [], "a template that cannot be parsed here is left alone"


def test_an_own_template_takes_the_place_of_the_tokenizers() -> None:
    assert byte_tokenizer(CHATML).render(USER, ChatStyle("Q: {{ messages[0]['content'] }}\nA:")) == "Q: 2+3?\nA:"
    assert not byte_tokenizer().has_template(ChatStyle())
    assert byte_tokenizer().has_template(ChatStyle("x"))
