"""A response without its thinking: what every verifier of text reads. Stdlib only.

Models write their thinking between a pair of tags; each family has its own. A template may have opened the pair at the
end of the prompt, so that only the tag that closes it is in the response. Whoever has not closed it has not answered.
"""

from __future__ import annotations

import re

TAGS: dict[str, tuple[str, str]] = {
    "think": (r"<think>", r"</think>"),  # DeepSeek, Qwen, GLM, MiniMax, Nemotron, Olmo and most others
    "thinking": (r"<thinking>", r"</thinking>"),
    "thought": (r"<thoughts?>", r"</thoughts?>"),  # EXAONE Deep
    "reasoning": (r"<reasoning>", r"</reasoning>"),
    "seed": (r"<seed:think>", r"</seed:think>"),  # Seed-OSS
    "magistral": (r"\[THINK\]", r"\[/THINK\]"),
    "kimi": (r"◁think▷", r"◁/think▷"),
    "command": (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    "open_thoughts": (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    "apertus": (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    "harmony": (r"<\|channel\|>analysis<\|message\|>", r"<\|channel\|>final<\|message\|>"),  # gpt-oss
    "bare_harmony": (r"\Aanalysis(?=[A-Z])", r"assistantfinal"),  # the same without its special tokens
    "gemma": (r"<\|channel>thought", r"<channel\|>"),
    "medgemma": (r"<unused94>thought", r"<unused95>"),
}
"""name -> patterns of the tags that open and close the thinking"""

_CASELESS = ("think", "thinking", "thought", "reasoning")
_TAG = re.compile(
    "|".join(
        f"(?P<{name}__{side}>{f'(?i:{pattern})' if name in _CASELESS else pattern})"
        for name, pair in TAGS.items()
        for side, pattern in zip(("opens", "closes"), pair, strict=True)
    )
)
_OPENS_AT_END = re.compile(rf"(?:{'|'.join(opening for opening, _ in TAGS.values())})\s*\Z", re.IGNORECASE)
_LONGEST_TAG = 40


def after_thinking(response: str, prompt: str = "") -> str:
    """Return what stands outside the thinking; "" when the thinking is not finished.

    ``prompt``: its end tells whether the response begins inside the thinking. A tag that closes what nothing opened
    says the same. Example: ``after_thinking("5? no.</think> It is 7.")`` is `` It is 7.``
    """
    opened = _opened_by(prompt)
    outside, start = [], 0
    for tag in _TAG.finditer(response):
        name, _, side = (tag.lastgroup or "").partition("__")
        if side == "opens":
            if opened is None:
                outside.append(response[start : tag.start()])
                opened = name
        elif opened in (None, name):
            if opened is None:
                outside.clear()
            opened, start = None, tag.end()
    return "" if opened is not None else "\n".join([*outside, response[start:]])


def _opened_by(prompt: str) -> str | None:
    found = _OPENS_AT_END.search(prompt[-_LONGEST_TAG:])
    tag = None if found is None else _TAG.match(found[0])
    return None if tag is None or tag.lastgroup is None else tag.lastgroup.partition("__")[0]
