"""Text of token ids: which special tokens verifiers and people see."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import Prompt, PromptGroup, Response
from lpo_ray.rollout.rewards import cases_of
from lpo_ray.verifiers.calling.call import verify
from lpo_ray.verifiers.sandbox.limits import Limits

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
INST = "{% for m in messages %}{{ bos_token }}[INST]{{ m['content'] }}[/INST]{% endfor %}"


def tokenizer_of(*special: str, template: str | None = None) -> Tokenizer:
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    known = ["<s>", "</s>", "<unk>", *special, *characters]
    made = tokenizers.Tokenizer(models.WordLevel({text: n for n, text in enumerate(known)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=list(special),
    )  # fmt: skip
    found.chat_template = template
    return Tokenizer(found)


@pytest.mark.parametrize(
    ("special", "template", "text", "seen"),
    [
        (("<think>", "</think>"), None, "<think>a</think>b</s>", "<think>a</think>b"),
        (("[THINK]", "[/THINK]"), None, "[THINK]a[/THINK]b", "[THINK]a[/THINK]b"),
        (
            ("<think>", "</think>", "<|im_start|>", "<|im_end|>"), CHATML, "<think>a</think>b<|im_end|>",
            "<think>a</think>b",
        ),
        (("[INST]", "[/INST]", "<a>", "</a>"), INST, "[INST]a[/INST]<a>b</a></s>", "a<a>b</a>"),
        (("<think>",), None, "<think>a", "a"),
        (("<|fim|>", "<pad>"), None, "a<|fim|>b<pad>", "ab"),
        ((), None, "<s>a</s>", "a"),
    ],
)  # fmt: skip
def test_tags_are_part_of_what_is_said_and_ends_of_turns_are_not(
    special: tuple[str, ...], template: str | None, text: str, seen: str
) -> None:
    tokenizer = tokenizer_of(*special, template=template)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == seen
    assert tokenizer.show(ids) == text
    assert not any(name in tokenizer.decode_plain(ids) for name in special)


def test_what_verifiers_of_each_kind_are_given() -> None:
    tokenizer = tokenizer_of("<think>", "</think>", "<|im_start|>", "<|im_end|>", template=CHATML)
    prompt = tokenizer.encode("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer.encode("<think>a</think><answer>5</answer><|im_end|>")
    response = Response(ids, np.zeros(len(ids), np.float32), np.full(len(ids), 3), "stop")
    ours, theirs = (
        cases_of(PromptGroup(Prompt("p", prompt, "5", name, {}, 5), 0, (response,)), tokenizer, Limits())[0]
        for name in ("think_format", "my:f")
    )
    assert ours.response == theirs.response == "<think>a</think><answer>5</answer>"
    assert verify("think_format", [ours])[0].reward == 1.0
    assert ours.sampled is None
    assert theirs.sampled is not None
    assert theirs.sampled.response == "a<answer>5</answer>"
    assert theirs.sampled.query == tokenizer.show(np.concatenate([prompt, ids]))
    assert theirs.sampled.prompt == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert (list(theirs.sampled.token_ids), theirs.sampled.step, theirs.raw_answer) == (ids.tolist(), 3, 5)
