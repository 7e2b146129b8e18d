"""Requests in flight when new weights arrive: what becomes of them, one row for each mode (``pipeline.inflight``).

```
                 running requests                            KV cache of old weights
 finish          are decoded to their end first              dropped
 keep_recompute  wait, and continue                          dropped, and computed again with the new weights
 keep_cache      wait, and continue                          kept: no other request may read it
 abort_resume    end; the worker sends them again, with      dropped
                 the tokens so far as part of the prompt
 keep_version    go on to their end with the adapter that    kept: it is of one adapter by its name
                 they began with; nothing waits
```
Both engines carry it out; the rollout worker reads it for its probe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lpo_ray.config.schema import Inflight

if TYPE_CHECKING:
    from vllm.inputs import TokensPrompt


@dataclass(frozen=True, slots=True)
class Rule:
    """One mode of ``pipeline.inflight``, as engines follow it."""

    pause: Literal["wait", "keep", "abort"]
    """what becomes of running requests, in vLLM's words (``AsyncLLM.pause_generation``)"""
    drops_caches: bool
    """whether the KV cache of the old weights is dropped"""
    restarts_unstarted: bool
    """whether requests that wait for their first token are taken back when an update begins, and sent again after it:
    they would make a drain longer than the longest response, or find the KV cache of the old weights ("abort" takes all
    back anyway)
    """
    keeps_versions: bool = False
    """whether the engine decodes on while weights arrive, and responses end with what they began with"""


RULES = {
    Inflight.finish: Rule("wait", drops_caches=True, restarts_unstarted=True),
    Inflight.keep_recompute: Rule("keep", drops_caches=True, restarts_unstarted=False),
    Inflight.keep_cache: Rule("keep", drops_caches=False, restarts_unstarted=True),
    Inflight.abort_resume: Rule("abort", drops_caches=True, restarts_unstarted=False),
    Inflight.keep_version: Rule("keep", drops_caches=False, restarts_unstarted=False, keeps_versions=True),
}


TAKEN_BACK = "abort"
"""vLLM's finish_reason of a request that was ended from outside, as only an update does"""


@dataclass(frozen=True, slots=True)
class Kind:
    """Kind of a request: how it stands among others, and what answers it."""

    shared: bool = False
    """it shares its KV cache with requests of before an update; see Admission.prompt"""
    priority: int = 0
    """lower is decoded first"""
    bare: bool = False
    """answered by the model without its adapter"""
    newest: bool = False
    """answered by the adapter that arrived last, proved or not"""


SAMPLE = Kind()


class Admission:
    """Gate that holds requests back while an engine takes new weights; in the event loop of the engine's worker."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._updates = 0

    def close(self) -> None:
        """Begin an update. What was admitted before it has been handed to the engine before it, too."""
        self._open.clear()

    def reopen(self) -> None:
        """End an update."""
        self._updates += 1
        self._open.set()

    async def prompt(self, token_ids: Sequence[int], *, shared: bool) -> TokensPrompt:
        """Make a prompt, once no update is running. It shares its KV cache only with prompts since the last update,
        unless ``shared``. Updates are counted, not versions: a version may be delivered twice.
        """
        from vllm.inputs import TokensPrompt

        while not self._open.is_set():  # it may have closed again before this one woke
            await self._open.wait()
        if shared:
            return TokensPrompt(prompt_token_ids=list(token_ids))
        return TokensPrompt(prompt_token_ids=list(token_ids), cache_salt=f"update {self._updates}")
