"""The verifier service: verdicts apart from driver and learner, by a pool of processes and by endpoints elsewhere.

A response that cannot be checked is *unscored*, which is retried and then loses the group: never a reward of 0.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from actors.control.log_shipping import ship_log
from actors.runtime.cpu_tuning import give_way
from actors.runtime.inspection import current_process
from actors.runtime.start_watch import Startable
from actors.verifier.dispatch import Verdicts
from actors.verifier.endpoint import RemoteSettings, RemoteVerdicts
from actors.verifier.process_pool import ProcessPoolSettings, VerdictPool
from lpo_ray.common.silence import Progress
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import Key, Process, PromptGroup
from lpo_ray.rollout.rewards import Scores, cases_of, given_verdicts, scores_of
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.calling.overlong import Overlong
from lpo_ray.verifiers.sandbox.limits import Limits


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Settings of the service; the keys of the verifier section describe them."""

    pool: ProcessPoolSettings
    remote: RemoteSettings
    max_retries: int
    cached_verdicts: int
    overlong: Overlong
    sandbox: Limits


class VerifierService(Startable):
    """Service: a plain class that ``roles.py`` makes an actor, with many concurrent calls."""

    def __init__(self, model_path: str, settings: ServiceSettings, *, trust_remote_code: bool = False) -> None:
        """``model_path``: model whose tokenizer turns responses into text. ``trust_remote_code``: see
        model.trust_remote_code.
        """
        self._model_path, self._trust_remote_code = model_path, trust_remote_code
        self._settings = settings
        self._groups: set[Key] = set()
        """groups that it scores"""

    async def start(self) -> Process:
        """Start the pool, and return where the service runs."""
        give_way()
        ship_log("verifier", "verifier service")
        settings = self._settings
        self._tokenizer = Tokenizer.load(self._model_path, trust_remote_code=self._trust_remote_code)
        self._pool, self._remote = VerdictPool(settings.pool), RemoteVerdicts(settings.remote)
        self._verdicts = Verdicts(self._pool, self._remote, settings.max_retries, settings.cached_verdicts)
        await self._pool.verdicts("countdown", [Case("", "", '{"numbers": [1], "target": 1}')])
        return current_process()

    async def resize(self, num_processes: int) -> None:
        """Verify with another number of processes from now on."""
        self._pool.resize(num_processes)

    async def score(self, group: PromptGroup) -> Scores:
        """Verify the group's responses. Raises GroupLost when one stays unscored."""
        self._groups.add(group.key)
        try:
            verdicts = given_verdicts(group)
            if verdicts is None:
                cases = cases_of(group, self._tokenizer, self._settings.sandbox)
                verdicts = await self._verdicts.of(group.prompt.verifier, cases)
            return scores_of(group, verdicts, self._settings.overlong)
        finally:
            self._groups.discard(group.key)

    async def progress(self) -> Progress:
        """Say how many verdicts were given so far, and which groups it has."""
        return Progress((self._pool.given, self._remote.given), not self._groups, frozenset(self._groups))

    async def close(self) -> None:
        """Kill the pool's processes."""
        await asyncio.gather(self._pool.close(), self._remote.close())
