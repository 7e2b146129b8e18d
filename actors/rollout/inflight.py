"""What becomes of the requests in an engine when new weights arrive: one row a mode (``pipeline.inflight``).

```
                 running requests                            keys and values of old weights
 finish          are decoded to their end first              dropped
 keep_recompute  wait, and go on                             dropped, and computed again with the new weights
 keep_cache      wait, and go on                             kept: nobody else may read them
 abort_resume    end; the worker sends them again, with      dropped
                 the tokens so far as part of the prompt
```
Read by both engines, which carry it out, and by the rollout worker, for its probe.
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
    """One mode, as engines follow it."""

    pause: Literal["wait", "keep", "abort"]
    """what becomes of running requests, in vLLM's words (``AsyncLLM.pause_generation``)"""
    drops_caches: bool
    """whether keys and values that the old weights computed are dropped"""
    begins_anew: bool
    """whether requests that wait for their first token are taken back when an update begins, and sent again after it:
    they would make a drain longer than the longest response, or find keys and values of the old weights ("abort" takes
    all back, without more ado)
    """


RULES = {
    Inflight.finish: Rule("wait", drops_caches=True, begins_anew=True),
    Inflight.keep_recompute: Rule("keep", drops_caches=True, begins_anew=False),
    Inflight.keep_cache: Rule("keep", drops_caches=False, begins_anew=True),
    Inflight.abort_resume: Rule("abort", drops_caches=True, begins_anew=False),
}


TAKEN_BACK = "abort"
"""vLLM's finish_reason of a request that was ended from outside, which only an update does"""


class Admission:
    """Holds requests back while an engine takes new weights. Lives in the event loop of the engine's worker."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._updates = 0

    def close(self) -> None:
        """An update begins. Whoever was admitted before has been handed to the engine before, too."""
        self._open.clear()

    def reopen(self) -> None:
        """An update is done."""
        self._updates += 1
        self._open.set()

    async def prompt(self, token_ids: Sequence[int], *, shared: bool) -> TokensPrompt:
        """Waits while an update goes on. The prompt shares cached keys and values only with prompts since the last
        update, unless ``shared``. Counted are updates, not versions: a version may be delivered twice.
        """
        from vllm.inputs import TokensPrompt

        while not self._open.is_set():  # it may have closed again before this one woke
            await self._open.wait()
        if shared:
            return TokensPrompt(prompt_token_ids=list(token_ids))
        return TokensPrompt(prompt_token_ids=list(token_ids), cache_salt=f"update {self._updates}")
