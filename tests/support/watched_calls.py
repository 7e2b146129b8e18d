"""What a run's engines drew for agents, by the record of their calls, and whether that is what was trained."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lpo_ray.records import PromptGroup, Response
from lpo_ray.training.call_store import FILE, call_from_bytes

Drawn = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], tuple[int, ...]]
"""context, tokens, log-probs and weights versions of a turn that an engine drew"""


@dataclass
class Watched:
    """Calls of a run as its record had them, whatever became of them; by session."""

    path: Path
    calls: dict[tuple[str, int, int], dict[int, Drawn]] = field(default_factory=dict)
    requests: dict[tuple[str, int, int], list[bytes]] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        last = 0
        while not self.done.wait(0.1):
            try:
                with sqlite3.connect(f"file:{self.path}?mode=ro", uri=True) as db:
                    rows = db.execute(
                        "SELECT id, prompt_id, attempt, response, content FROM calls WHERE id > ?", (last,)
                    ).fetchall()
            except sqlite3.OperationalError:
                continue  # not there yet
            for number, *name, content in rows:
                found = call_from_bytes(content)
                last = max(last, number)
                self.requests.setdefault((*name,), []).append(found.call.request)
                self.calls.setdefault((*name,), {})[number] = (
                    tuple(found.call.context_ids.tolist()), tuple(found.turn.token_ids.tolist()),
                    tuple(found.turn.behaviour_logprobs.tolist()), tuple(found.turn.versions.tolist()),
                )  # fmt: skip

    def check(self, group: PromptGroup, k: int) -> list[Drawn]:
        """Return the turns of a response that was trained: each is a call of its session, and each call one of them."""
        turns = turns_of(group, group.responses[k])
        assert Counter(turns) == Counter(self.calls[*group.key, k].values()), "each call is a turn, each turn a call"
        return turns


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[Watched]:
    """Watch the record of the run in ``folder``, from before it begins."""
    watched = Watched(folder / FILE)
    thread = threading.Thread(target=watched.run)
    thread.start()
    try:
        yield watched
    finally:
        watched.done.set()
        thread.join()


def turns_of(group: PromptGroup, response: Response) -> list[Drawn]:
    """Read the turns of a response out of its segments, in order."""
    assert response.conversation is not None
    ends = np.cumsum(response.turns)[:-1]
    columns = [
        np.split(column, ends) for column in (response.token_ids, response.behaviour_logprobs, response.versions)
    ]
    contexts = _contexts(response, group.prompt.token_ids)
    return [
        (context, *(tuple(part.tolist()) for part in parts))  # type: ignore[misc]
        for context, *parts in zip(contexts, *columns, strict=True)
    ]


def _contexts(response: Response, prompt: np.ndarray) -> Iterator[tuple[int, ...]]:
    number = 0
    for segment in response.segments:
        context = prompt if segment.context_ids is None else segment.context_ids
        whole, places = [*context.tolist(), *segment.token_ids.tolist()], np.flatnonzero(segment.sampled)
        while len(places):
            yield tuple(whole[: len(context) + places[0]])
            places, number = places[response.turns[number] :], number + 1
