"""Verdicts by any verifier: weighted sums of several, retried when unscored, cached."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

from actors.verifier.process_pool import NoAnswer
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.call import version_of
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.calling.weighted_sum import is_remote, terms, weighted_sum

RETRY_SECONDS = 0.2
"""pause before the first retry; doubled with each"""


class VerdictSource(Protocol):
    """A source of verdicts: VerdictPool or RemoteVerdicts."""

    async def verdicts(self, verifier: str, cases: Sequence[Case]) -> list[Verdict]:
        """Return a verdict of each case, in order. Never raises for what a verifier does."""
        ...

    async def takes_whole_group(self, verifier: str) -> bool:
        """Tell whether the verifier must be given all responses of a group at once. Raises NoAnswer."""
        ...


class Verdicts:
    """Dispatcher to the sources of verdicts. Lives in one event loop."""

    def __init__(self, pool: VerdictSource, remote: VerdictSource, max_retries: int, most_cached: int) -> None:
        """``pool``: runs functions. ``remote``: asks services elsewhere. ``most_cached``: verdicts that are kept."""
        self._pool, self._remote, self._max_retries, self._most_cached = pool, remote, max_retries, most_cached
        self._cached: OrderedDict[bytes, Verdict] = OrderedDict()

    async def of(self, verifier: str, cases: Sequence[Case]) -> list[Verdict]:
        """Return a verdict of each case, of the weighted sum that ``verifier`` stands for."""
        sum_of = terms(verifier)
        parts = await asyncio.gather(*(self._retried(term.name, cases) for term in sum_of))
        return [weighted_sum(sum_of, verdicts) for verdicts in zip(*parts, strict=True)]

    async def _retried(self, verifier: str, cases: Sequence[Case]) -> list[Verdict]:
        """Return verdicts of one verifier. What has none is asked for again, ``max_retries`` times at most: alone, or
        with the whole group where the verdict depends on it.
        """
        source = self._remote if is_remote(verifier) else self._pool
        verdicts = await self._remembered(source, verifier, cases)
        for retry in range(self._max_retries):
            open_ones = [number for number, verdict in enumerate(verdicts) if verdict.lack in ("unscored", "failed")]
            if not open_ones:
                break
            await asyncio.sleep(RETRY_SECONDS * 2**retry)
            if await self._whole_group(source, verifier):
                verdicts = await source.verdicts(verifier, cases)
                continue
            again = await self._remembered(source, verifier, [cases[number] for number in open_ones])
            for number, verdict in zip(open_ones, again, strict=True):
                verdicts[number] = verdict
        return verdicts

    async def _remembered(self, source: VerdictSource, verifier: str, cases: Sequence[Case]) -> list[Verdict]:
        """Return verdicts of one verifier; those that were asked for before come from the cache, unless a verdict
        depends on the whole group.
        """
        if not self._most_cached or await self._whole_group(source, verifier):
            return await source.verdicts(verifier, cases)
        version = version_of(verifier)
        asked = {_key(verifier, version, case): case for case in cases}
        known = {key: self._cached[key] for key in asked if key in self._cached}
        new = [key for key in asked if key not in known]
        known |= zip(new, await source.verdicts(verifier, [asked[key] for key in new]), strict=True)
        is_current = version_of(verifier) == version
        for key, verdict in known.items():
            if verdict.is_scored and is_current:
                self._cached[key] = verdict
                self._cached.move_to_end(key)
        while len(self._cached) > self._most_cached:
            self._cached.popitem(last=False)
        return [known[_key(verifier, version, case)] for case in cases]

    async def _whole_group(self, source: VerdictSource, verifier: str) -> bool:
        """Tell whether a verdict depends on the group; where nobody can say, the verdicts say why."""
        try:
            return await source.takes_whole_group(verifier)
        except NoAnswer:
            return True


def _key(verifier: str, version: str, case: Case) -> bytes:
    """Key of a verdict in the cache of one service: the settings of its verifiers never change."""
    asked = (
        verifier, version, case.prompt, case.answer, repr(case.raw_answer), repr(case.row), str(case.truncated),
        case.response, repr(case.sampled),
    )  # fmt: skip
    return blake2b("\0".join(asked).encode(errors="surrogatepass"), digest_size=16).digest()
