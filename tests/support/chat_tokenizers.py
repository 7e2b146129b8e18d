"""Byte-level tokenizers with chat templates in the shapes of published models."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lpo_ray.policy.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
"""of Qwen3: a base model's end token is another than <|im_end|>"""
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
DATED = (
    "{% if strftime_now is defined %}{% set d = strftime_now('%d %b %Y') %}{% else %}{% set d = 'none' %}{% endif %}"
    "Today Date: {{ d }}\n{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
)
"""of Llama 3.2; what ends a turn is no token"""


def byte_tokenizer(
    template: str | None = None,
    *,
    begin: Sequence[str] = (),
    end: Sequence[str] = (),
    eos: str = "<|endoftext|>",
    special: Sequence[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>", "</s>"),
) -> Tokenizer:
    """``begin`` and ``end``: special tokens that it puts before and after every text."""
    vocabulary = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    if begin or end:
        ids = [(text, tokenizer.token_to_id(text)) for text in {*begin, *end}]
        single = " ".join([*begin, "$A", *end])
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token="<bos>")
    made.chat_template = template
    return Tokenizer(made)


def spaced_tokenizer(template: str, spaces: str, *, eos: str, takes_space: bool = False) -> Tokenizer:
    """Make a tokenizer in SentencePiece's form, of single characters.

    ``spaces``: where it puts one: "first": before a text, "always": also behind special tokens, "never", or "legacy":
    as Llama 2 does. ``takes_space``: special tokens take the white space behind them away, as those of Phi 3.
    """
    characters = ["<unk>", *map(chr, range(32, 127)), "\n", "▁"]
    model = models.BPE(vocab={each: number for number, each in enumerate(characters)}, merges=[], unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    if spaces == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never" if spaces == "legacy" else spaces)
    special = ("<|im_start|>", "<|im_end|>", "<bos>", "</s>")
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False, rstrip=takes_space) for text in special]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token="<bos>", unk_token="<unk>")
    made.chat_template = template
    return Tokenizer(made)


QWEN3 = (
    "{%- set ns = namespace(last=messages|length - 1) %}"
    "{%- for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{%- endfor %}"
    "{%- if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- for m in messages %}{%- set content = m['content'] %}"
    "{%- if m['role'] == 'assistant' %}{%- if '</think>' in content and loop.index0 < ns.last %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{ '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}"
    "{%- elif m['role'] == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}"
    "{%- else %}{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}{# <tool_call> #}"
)
"""of Qwen3: what was thought before the user's last turn is left out"""
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'ipython' if m['role'] == 'tool' else m['role'] %}"
    "{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    "{# <|python_tag|> #}"
)
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% if m['role'] == 'user' or (m['role'] == 'assistant' and not m['tool_calls']) %}"
    "{% if (m['role'] == 'user') != (ns.n % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'tool' %}{{ '[TOOL_RESULTS] ' + m['content'] + '[/TOOL_RESULTS]' }}"
    "{% elif m['tool_calls'] %}{{ '[TOOL_CALLS] [' }}{% for c in m['tool_calls'] %}{{ c['function'] | tojson }}"
    "{% endfor %}{{ ']' + eos_token }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""of Mistral: an answer without calls must not stand before a tool's message"""


_LLAMA_TOKENS = ("<|endoftext|>", "<bos>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
PUBLISHED = {
    "chatml": byte_tokenizer(CHATML, eos="<|im_end|>"),
    "qwen3": byte_tokenizer(QWEN3, eos="<|im_end|>"),
    "llama 2": byte_tokenizer(LLAMA_2, eos="</s>"),
    "llama 3": byte_tokenizer(LLAMA_3, special=_LLAMA_TOKENS, eos="<|eot_id|>"),
    "mistral": byte_tokenizer(MISTRAL, eos="</s>"),
}
"""name -> tokenizer with a chat template in a published shape"""
