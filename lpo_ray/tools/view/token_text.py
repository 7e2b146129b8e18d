"""The text of each token of a response."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from lpo_ray.records import IntArray

CHARACTER_TOKENS = 4
"""tokens that one character may be spread over: bytes of UTF-8"""
UNFINISHED = "\ufffd"
"""what decoders give for bytes that are no character, or not yet"""


def pieces(show: Callable[[IntArray], str], token_ids: IntArray, start: int, stop: int) -> list[str]:
    """Decode the text of the tokens from ``start`` to ``stop``; joined, all of them are ``show(token_ids)``. A
    character of several tokens is the text of the last; the others have none. Each token is decoded behind the one
    before it, on which its leading space may depend.
    """
    begin = max(0, start - 2 * CHARACTER_TOKENS)
    texts: list[str] = []
    context = done = begin
    for at in range(begin, stop):
        before, now = show(token_ids[context:done]), show(token_ids[context : at + 1])
        unfinished = now.endswith(UNFINISHED) and at + 1 - done < CHARACTER_TOKENS and at + 1 < len(token_ids)
        if unfinished:
            texts.append("")
            continue
        texts.append(now[len(before) :])
        context, done = done, at + 1
    return texts[start - begin :]


def by_position(text: str, tokens: int, start: int, stop: int) -> list[str]:
    """Cut ``text``, without a tokenizer, into as many pieces of nearly equal length as there are tokens."""
    cuts: Sequence[int] = [at * len(text) // max(tokens, 1) for at in range(start, stop + 1)]
    return [text[low:high] for low, high in itertools.pairwise(cuts)]
