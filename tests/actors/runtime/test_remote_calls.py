"""What a Ray call ended in, under the name of who failed."""

from __future__ import annotations

import pytest
from ray.exceptions import OutOfMemoryError, RayError

from actors.runtime.remote_calls import call
from lpo_ray.errors import ComponentDied, ComponentFailed
from tests.support.ray_fakes import Reference

RAN_OUT = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2) was \
22.39GB used / 23.54GB limit (0.951266), which exceeds the memory usage threshold of 0.95.
Object store memory usage: [- objects spillable: 0
Top 10 memory users: PID        MEM(GB) COMMAND
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [(RAN_OUT, "(22.39GB used / 23.54GB limit)"), ("Other words\nand more", "(Other words)")],
)
async def test_who_is_killed_for_memory_has_died_and_is_replaced_as_such(text: str, said: str) -> None:
    """In one line: Ray's fifty would stand in the log for every group that was on its way."""
    with pytest.raises(ComponentDied) as died:
        await call(Reference(OutOfMemoryError(text)), who="the verifier service", what="score", seconds=5)
    assert str(died.value).startswith("the verifier service died: Ray killed it because its node ran low on memory")
    assert said in str(died.value)
    assert "\n" not in str(died.value)


async def test_another_error_of_ray_leaves_it_alive() -> None:
    with pytest.raises(ComponentFailed, match="rollout worker 0 failed to 'sample': RayError: lost"):
        await call(Reference(RayError("lost")), who="rollout worker 0", what="sample", seconds=5)
