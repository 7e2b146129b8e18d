"""Interfaces of a run: five components, the prompts and the observer. ``training/loop.py`` knows nothing else.

``actors/`` implements the components on Ray, ``run/inprocess.py`` in one process. All are awaited from one event loop.
Each call has a limit of its own, on silence rather than on work, and raises an error of ``errors.py`` when the
component fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Protocol

from lpo_ray.errors import GroupLost, LearnerLost
from lpo_ray.records import (
    AfterGroup,
    Anchor,
    Answered,
    BusyWorker,
    Call,
    ConversationId,
    Finished,
    FloatArray,
    IntArray,
    Key,
    Observation,
    Process,
    Prompt,
    PromptGroup,
    Publication,
    Refusal,
    Sampling,
    ScoredGroup,
    ScoringItem,
    StepRecord,
    StepReport,
    TargetGroup,
    TrainBatch,
    Turn,
    TurnRequest,
    WorkerStatus,
)


class RolloutEngine(Protocol):
    """Samples responses."""

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """Draw ``sampling.group_size`` responses. Raises GroupLost when the group cannot be completed."""
        ...


class TurnEngine(RolloutEngine, Protocol):
    """Samples responses, and single turns of conversations."""

    async def turn(self, request: TurnRequest) -> Turn:
        """Draw one turn behind its context, on the engine that has the conversation's prefix, or any other. Raises
        GroupLost when no engine can complete it.
        """
        ...


class Environments(Protocol):
    """Hosts the environments of conversations, and turns messages into tokens. Raises GroupLost for what is lost."""

    async def open(self, conversation: ConversationId, prompt: Prompt) -> IntArray:
        """Make the environment of a conversation and return the context of its first turn, [C] tokens."""
        ...

    async def reply(self, conversation: ConversationId, turn: Turn) -> Observation:
        """Give the environment what the policy said. Raises Unscored when the environment raises or hangs at it."""
        ...

    async def end(self, conversation: ConversationId) -> None:
        """Forget a conversation, ended or not. Never raises."""
        ...


class Agents(Protocol):
    """Runs agents, the programs of users, each in a session with an endpoint of its own. Raises GroupLost for what is
    lost, Unscored for what an agent itself does wrong.
    """

    async def open(self, conversation: ConversationId, prompt: Prompt) -> None:
        """Open a session and start its agent."""
        ...

    async def next(self, conversation: ConversationId) -> Call | Finished:
        """Wait for the next call that needs tokens, or the end. A call that is repeated gets the answer that it got
        before; it is seen here again only if it was in flight when its endpoint died.
        """
        ...

    async def answer(self, conversation: ConversationId, number: int, answer: Turn | Refusal) -> None:
        """Answer a call. The same answer may come twice."""
        ...

    def downtime(self) -> float:
        """Seconds in which agents could not ask, so far, as while their endpoint was being replaced."""
        ...

    async def end(self, conversation: ConversationId) -> str:
        """End a session with its agent, if it still runs: its key opens nothing from now on. Returns what an agent that
        still ran printed last. Never raises.
        """
        ...


class CallRecord(Protocol):
    """Keeps the calls of agents, so that they are answered alike when their agent has to run again."""

    async def begin(self, prompt_id: str, attempt: int, sampling: Sampling) -> Mapping[int, Sequence[Answered]]:
        """Return what the attempts before were answered, if they were cut off: calls by response, those of the last
        attempt first. Attempt 0 begins without any, and so does one after ``forget``.
        """
        ...

    async def put(self, conversation: ConversationId, answered: Answered, sampling: Sampling) -> None:
        """Keep a call before its agent is answered: it survives a kill of this process."""
        ...

    async def forget(self, prompt_id: str) -> None:
        """Forget all calls of a prompt: they led to no response that can be scored."""
        ...


class Verifier(Protocol):
    """Scores responses."""

    async def score(self, group: PromptGroup) -> ScoredGroup:
        """Score all K responses. Raises GroupLost when any verdict stays unscored after its retries: Unscored when the
        verifier works, and has none for this response.
        """
        ...


class TargetBuilder(Protocol):
    """Builds targets on the simplex."""

    async def build(self, groups: Sequence[ScoredGroup], anchor: Anchor, step: int) -> list[TargetGroup]:
        """Build the targets of a step (counted from 0), in order. Batch-wide statistics are over ``groups`` only."""
        ...


class Learner(Protocol):
    """Owns the policy being trained."""

    world_size: int

    async def log_ratios(self, groups: Sequence[ScoredGroup]) -> Anchor:
        """Compare the current policy with the engine's log-probs of each response (``records.AnchorGroup``)."""
        ...

    async def project(self, batch: TrainBatch) -> StepReport:
        """Run the updates of one step in order. The anchor is the policy before the first of them."""
        ...

    async def logprobs(self, forwards: Sequence[Sequence[ScoringItem]], temperature: float) -> list[FloatArray]:
        """Score all ``forwards`` in order, shared by the ranks: log-probs of each response's tokens."""
        ...

    async def digest(self) -> str:
        """Compute the identity of the current weights, as a publish would send them (``weights.Manifest.digest``)."""
        ...

    async def save(self, folder: Path) -> None:
        """Write everything ``restore`` needs, and the policy in Hugging Face format in ``folder/policy``. What another
        host writes is on disk when this returns; the caller syncs what this host wrote.

        Later calls wait for it, so they do not change what is written.
        """
        ...

    async def restore(self, folder: Path, written_by: int) -> None:
        """Continue from what ``written_by`` ranks saved; bit-equal when that is this world size."""
        ...

    async def reform(self, lost: LearnerLost) -> None:
        """Start again after ``lost``, with the model's own weights, on as many ranks as there is room for.

        Raises ComponentDied when the restart budget is spent.
        """
        ...


class WeightTransport(Protocol):
    """Moves weights from the learner to the engines."""

    async def publish(self, step: int) -> Publication:
        """Send the learner's weights; return when every engine that serves has proved them.

        An engine that fails is taken out of service and replaced. Raises WeightsNotProved when none proves them.
        """
        ...


class PromptSource(Protocol):
    """Provides training prompts by number, and held-out prompts.

    The position in the data is that number and nothing else: a source has no cursor. A resumed run needs only the first
    number that was never issued, which its ledger has.
    """

    def train(self, index: int) -> Prompt:
        """Make training prompt number ``index`` of the run (0, 1, ...), without end. Its id sorts in this order.

        Raises UnusableRow for one that cannot be scored; it is left out, and the run continues with the next.
        """
        ...

    def heldout(self, count: int) -> Sequence[Prompt]:
        """Make the first ``count`` held-out prompts that can be scored; none of them is ever a training prompt."""
        ...


class Events(Protocol):
    """Receives what components tell the user, at any time."""

    def note(self, text: str) -> None:
        """Report something worth a line, such as a worker that was replaced."""
        ...

    def workers(self, workers: Sequence[WorkerStatus]) -> None:
        """Report all rollout workers, whenever one changes."""
        ...

    def measured(self, values: Mapping[str, int]) -> None:
        """Report counts that changed, by the names that metrics have."""
        ...

    def starting(self, name: str, seconds: float) -> AbstractContextManager[None]:
        """Enter while the component ``name`` starts with the run, for which it has ``seconds``."""
        ...


class Observer(Protocol):
    """Receives the events of a run: the recorder in production, a list in tests."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Enter while a stage is at work."""
        ...

    def lost(self, lost: GroupLost) -> None:
        """Report a group that was lost and is issued again."""
        ...

    def left_out(self, prompt_id: str, reason: str) -> None:
        """Report a prompt that is left out for good, and why."""
        ...

    async def learned(
        self,
        batch: TrainBatch,
        targets: Sequence[TargetGroup],
        report: StepReport,
        after: Mapping[Key, AfterGroup],
    ) -> None:
        """Keep what a step's updates did to its groups. The step is committed once this returns, and may be computed
        again before that.
        """
        ...

    def step_ends(self) -> Callable[[StepRecord], None]:
        """Return what writes the record of the step that ends now. A thread calls it, and what it writes belongs to the
        transaction in which the step is committed.
        """
        ...

    def step_done(self, record: StepRecord) -> None:
        """Report a step that is committed."""
        ...

    def score(self, name: str) -> float | None:
        """Look up a metric of the last step, or of the newest evaluation. None: not measured."""
        ...

    def evidence(self) -> str:
        """Say where the groups of the last step can be read."""
        ...


class Components(Protocol):
    """The five components, as a composition root hands them to the loop."""

    @property
    def rollout(self) -> RolloutEngine:
        """Samples responses."""
        ...

    @property
    def verifier(self) -> Verifier:
        """Scores responses."""
        ...

    @property
    def target_builder(self) -> TargetBuilder:
        """Builds targets."""
        ...

    @property
    def learner(self) -> Learner:
        """Fits the policy."""
        ...

    @property
    def transport(self) -> WeightTransport:
        """Moves the weights."""
        ...

    def lend(self) -> AbstractAsyncContextManager[RolloutEngine] | None:
        """Lend an engine, which keeps its weights until the context ends while the run continues without it.

        None: there is none to spare. Its ``sample`` raises ComponentDied when it is lost.
        """
        ...

    def busy(self, stage: str) -> list[BusyWorker]:
        """List the workers that are busy with ``stage`` (a name of Observer.stage), from what is known in this process.

        Asks no other process and never raises.
        """
        ...

    def silence_of(self, key: Key) -> float:
        """Seconds since whoever samples or scores a group gave a sign of life; infinite: nobody holds it.

        None passes while the group waits for its turn. Asks no other process and never raises.
        """
        ...

    async def inspect(self, process: Process) -> str:
        """Describe what a process is doing: state, stack and last log lines. Never raises; takes seconds at most."""
        ...

    async def scale(self, role: str, count: int) -> str:
        """Scale a role (rollout, verifier) to ``count`` workers, in the background; returns what will happen.

        Raises ConfigError when there is no such role.
        """
        ...

    async def close(self) -> None:
        """End every process that this run started. Never raises."""
        ...
