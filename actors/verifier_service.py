"""The verifier service: a pool of processes with hard deadlines, apart from driver and learner.

Model-written text is only ever looked at in these processes. One that exceeds its deadline is killed and replaced by
the pool (pebble); its verdict is *unscored*, which is retried and then loses the group: never a reward of 0.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import signal
from concurrent.futures import TimeoutError as FutureTimeout

import numpy as np
from pebble import ProcessExpired, ProcessPool

from lpo_ray.errors import GroupLost
from lpo_ray.records import FloatArray, Process, PromptGroup
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.run import verify

_PR_SET_PDEATHSIG = 1


class VerifierService:
    """Plain class; ``cluster.py`` makes it an actor with many concurrent calls."""

    def __init__(
        self,
        model_path: str,
        num_processes: int,
        deadline_seconds: float,
        max_retries: int,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        """``model_path``: whose tokenizer turns responses into text. ``deadline_seconds``: for one response.
        ``trust_remote_code``: see model.trust_remote_code.
        """
        self._model_path, self._num_processes, self._trust_remote_code = model_path, num_processes, trust_remote_code
        self._deadline, self._max_retries = deadline_seconds, max_retries

    async def start(self) -> Process:
        """Start the pool; returns where the service runs."""
        # here, since the verifier processes import this module, and need neither Ray nor a tokenizer
        from actors.inspection import current_process
        from actors.priority import give_way
        from actors.worker_log import ship_log
        from lpo_ray.tokenizer import Tokenizer

        give_way()
        ship_log("verifier", "verifier service")
        self._tokenizer = Tokenizer.load(self._model_path, trust_remote_code=self._trust_remote_code)
        # forkserver: a clean parent without this actor's threads, from which a replacement forks in milliseconds
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["lpo_ray.verifiers.run"])
        self._pool = self._make_pool()
        await self._verdict("countdown", "", "", '{"numbers": [1], "target": 1}')
        return current_process()

    async def resize(self, num_processes: int) -> None:
        """Verify with another number of processes from now on. What the old ones are at work on they end."""
        if num_processes == self._num_processes:
            return
        old, self._num_processes = self._pool, num_processes
        self._pool = self._make_pool()
        old.close()
        self._closing = asyncio.ensure_future(asyncio.to_thread(old.join))

    async def score(self, group: PromptGroup) -> FloatArray:
        """[K] rewards of the group's responses; see interfaces.Verifier."""
        prompt = self._tokenizer.decode(group.prompt.token_ids)
        texts = [self._tokenizer.decode(r.token_ids) for r in group.responses]
        verifier, answer = group.prompt.verifier, group.prompt.answer
        verdicts = await asyncio.gather(*(self._retried(verifier, prompt, text, answer) for text in texts))
        rewards = []
        for number, verdict in enumerate(verdicts):
            if verdict.reward is None:
                raise GroupLost(
                    group.prompt.prompt_id,
                    group.attempt,
                    f"response {number} stayed unscored after {self._max_retries} retries: {verdict.detail}",
                )
            rewards.append(verdict.reward)
        return np.asarray(rewards, dtype=np.float32)

    async def close(self) -> None:
        """Kill the pool's processes."""
        self._pool.stop()
        await asyncio.to_thread(self._pool.join, 10)

    def _make_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self._num_processes, max_tasks=10_000, initializer=_follow_parent, context=self._context
        )

    async def _retried(self, verifier: str, prompt: str, response: str, answer: str) -> Verdict:
        verdict = await self._verdict(verifier, prompt, response, answer)
        for _ in range(self._max_retries):
            if verdict.is_scored:
                break
            verdict = await self._verdict(verifier, prompt, response, answer)
        return verdict

    async def _verdict(self, verifier: str, prompt: str, response: str, answer: str) -> Verdict:
        future = self._pool.schedule(verify, args=(verifier, prompt, response, answer), timeout=self._deadline)
        try:
            return await asyncio.wrap_future(future)
        except FutureTimeout:
            return Verdict.unscored(f"no verdict within {self._deadline:g} s; its process was killed")
        except ProcessExpired as error:
            return Verdict.unscored(f"the verifier process died with exit code {error.exitcode}")


def _follow_parent() -> None:
    """Die with the forkserver (which dies with the actor), also while a verifier spins in a loop of its own."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
