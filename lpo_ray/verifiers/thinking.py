"""A response without its thinking: what every verifier of text reads. Stdlib only.

Models write their thinking between a pair of tags; each family has its own. A template may have opened the pair at the
end of the prompt, so that only the tag that closes it is in the response. Whoever has not closed it has not answered.
"""

from __future__ import annotations

import re

TAGS: dict[str, str] = {
    "<think>": "</think>",  # DeepSeek, Qwen, GLM, MiniMax, Nemotron, Olmo and most others
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",  # EXAONE Deep
    "<thoughts>": "</thoughts>",
    "<thought_process>": "</thought_process>",
    "<thinking_process>": "</thinking_process>",
    "<reasoning>": "</reasoning>",
    "<reason>": "</reason>",
    "<reflection>": "</reflection>",
    "<analysis>": "</analysis>",
    "<scratchpad>": "</scratchpad>",
    "<scratch_pad>": "</scratch_pad>",
    "<scratch>": "</scratch>",
    "<monologue>": "</monologue>",
    "<inner_monologue>": "</inner_monologue>",
    "<internal_monologue>": "</internal_monologue>",
    "<inner_thoughts>": "</inner_thoughts>",
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "[think]": "[/think]",  # Magistral
    "◁think▷": "◁/think▷",  # Kimi
    "<|start_thinking|>": "<|end_thinking|>",  # Command A
    "<|begin_of_thought|>": "<|end_of_thought|>",  # OpenThinker, Sky-T1
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>",  # gpt-oss
    "<|channel>thought": "<channel|>",  # Gemma
    "<unused94>thought": "<unused95>",  # MedGemma
}
"""tag that opens the thinking -> tag that closes it, in small letters"""

_OPENED_BY = {closing: opening for opening, closing in TAGS.items()}
_TAG = re.compile(
    r"[<\[◁][/|]{0,1}[tTrRsSbBeEiIcCuUaAmM][\w:|]{2,20}[>\]▷](?:(?:analysis|final)<\|message\|>|thought(?![a-z]))?"
)
_LONGEST_TAG = 40
_PARTS = (
    "hink", "HINK", "hought", "HOUGHT", "eason", "EASON", "eflection", "EFLECTION", "nalysis", "NALYSIS", "cratch",
    "CRATCH", "onologue", "ONOLOGUE", "fix|", "hannel", "unused9",
)  # fmt: skip
"""one of which is in every tag, so that most texts without any are not searched"""
_BARE_OPENING, _BARE_CLOSING = re.compile(r"analysis(?=[A-Z])"), "assistantfinal"
"""of gpt-oss, where special tokens were left out of the text"""


def after_thinking(response: str, prompt: str = "") -> str:
    """Return what stands outside the thinking; "" when the thinking is not finished.

    ``prompt``: its end tells whether the response begins inside the thinking. A tag that closes what nothing opened
    says the same. Example: ``after_thinking("5? no.</think> It is 7.")`` is `` It is 7.``
    """
    response = _after_bare_thinking(response)
    end = prompt[-_LONGEST_TAG:].rstrip().lower()
    opened = next((opening for opening in TAGS if end.endswith(opening)), None)
    if opened is None and not (any(sign in response for sign in "<[◁") and any(part in response for part in _PARTS)):
        return response
    outside, start = [], 0
    for found in _TAG.finditer(response):
        tag = found[0].lower()
        if tag in TAGS:
            if opened is None:
                outside.append(response[start : found.start()])
                opened = tag
        elif tag in _OPENED_BY and opened in (None, _OPENED_BY[tag]):
            if opened is None:
                outside.clear()
            opened, start = None, found.end()
    return "" if opened is not None else "\n".join([*outside, response[start:]])


def _after_bare_thinking(response: str) -> str:
    _, closing, rest = response.rpartition(_BARE_CLOSING)
    return "" if not closing and _BARE_OPENING.match(response) else rest
