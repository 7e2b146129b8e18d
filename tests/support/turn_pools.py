"""A pool of engines that draw turns, come and go, in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.records import TurnRequest, WeightsVersion
from lpo_ray.rollout.member import Member
from lpo_ray.rollout.pool import PoolSettings, RolloutPool
from lpo_ray.tools.simulate.virtual_time import run
from tests.support.conversations import Speaker
from tests.support.fakes import FakeEvents


class Scene:
    """A real pool of Speakers, in virtual time."""

    def __init__(
        self, num_workers: int, slots: int = 4, seconds: Callable[[TurnRequest], float] = lambda r: 1.0
    ) -> None:
        self.num_workers, self.slots, self.seconds = num_workers, slots, seconds
        self.made: list[Speaker] = []

    async def begin(self) -> RolloutPool[Speaker]:
        limits = PoolSettings(100.0, 100.0, 0.0, 20.0, self.slots, RestartRule(10**6, 1.0, 0.0))
        self.pool = RolloutPool(self._spawn, self.num_workers, settings=limits, events=FakeEvents())
        self.pool.admit = self._admit
        await self.pool.start()
        self.pool.serve(self.pool.members, WeightsVersion(0, "zero"))
        return self.pool

    def _spawn(self, index: int, name: str) -> Speaker:
        self.made.append(Speaker(name, self.seconds))
        return self.made[-1]

    async def _admit(self, member: Member[Speaker]) -> None:
        self.pool.serve([member], WeightsVersion(0, "zero"))

    def asked(self) -> list[TurnRequest]:
        return [request for speaker in self.made for request in speaker.asked]

    def idle(self) -> bool:
        """Nothing is held, waited for, or remembered of what has ended."""
        pool = self.pool
        held = [member for member in pool.members if member.groups or member.groups._calls or member.responses]
        waits = pool._queued or pool._balance.num_waiting
        return not held and not waits and not pool._homes._turns and not pool._homes._members


def in_scene(scene: Scene, work: Callable[[RolloutPool[Speaker]], Awaitable[None]]) -> None:
    async def main() -> None:
        pool = await scene.begin()
        await work(pool)
        await pool.close()

    run(main())
