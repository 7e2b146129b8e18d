"""Pool of engines for a publisher, without what starts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actors.delivery import Member
from lpo_ray.errors import LpoRayError
from lpo_ray.records import WeightsVersion


class MemberPool:
    """Members that are up; those taken out stay away unless ``replace`` makes others."""

    def __init__(self, members: Sequence[Member] = (), replace: Callable[[Member], Member] | None = None) -> None:
        self.members, self.out, self._replace = list(members), dict[str, LpoRayError](), replace

    async def started(self) -> list[Member]:
        assert self.members, "the publish waits for a replacement"
        return list(self.members)

    def serve(self, members: list[Member], version: WeightsVersion) -> None:
        for member in members:
            member.version = version

    def take_out(self, member: Member, error: LpoRayError) -> None:
        self.members.remove(member)
        self.out[member.name] = error
        if self._replace:
            self.members.append(self._replace(member))

    def statuses(self) -> tuple:
        return ()
