"""The five components of a run. ``loop.py`` is written against these and nothing else.

``actors/`` implements them on Ray, ``run/inprocess.py`` in one process. All are awaited from one event loop; each
call has a deadline of its own and raises a named error of ``errors.py`` when the component fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Protocol

from lpo_ray.errors import GroupLost, LearnerLost
from lpo_ray.records import (
    Anchor,
    BusyWorker,
    FloatArray,
    Process,
    Prompt,
    PromptGroup,
    Publication,
    Sampling,
    ScoredGroup,
    ScoringItem,
    StepRecord,
    StepReport,
    TargetGroup,
    TrainBatch,
    WorkerStatus,
)


class RolloutEngine(Protocol):
    """Produces responses."""

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """Draw ``sampling.group_size`` responses. Raises GroupLost when the group cannot be completed."""
        ...


class Verifier(Protocol):
    """Checks responses."""

    async def score(self, group: PromptGroup) -> ScoredGroup:
        """Score all K responses. Raises GroupLost when any verdict stays unscored after its retries."""
        ...


class TargetBuilder(Protocol):
    """Builds targets on the simplex."""

    async def build(self, groups: Sequence[ScoredGroup], anchor: Anchor, step: int) -> list[TargetGroup]:
        """Targets of a step (counted from 0), in the order given; batch-wide statistics are over these groups only."""
        ...


class Learner(Protocol):
    """Owns the policy being trained."""

    world_size: int

    async def log_ratios(self, groups: Sequence[ScoredGroup]) -> Anchor:
        """The current policy against the engine's log-probs, response by response; see AnchorGroup."""
        ...

    async def project(self, batch: TrainBatch) -> StepReport:
        """Run the updates of one step in order. The anchor is the policy before the first of them."""
        ...

    async def logprobs(self, forwards: Sequence[Sequence[ScoringItem]], temperature: float) -> list[FloatArray]:
        """Log-probs of each response's tokens, response by response, of all ``forwards`` in order. Ranks share them."""
        ...

    async def digest(self) -> str:
        """Identity of the current weights, as a publish would send them; see weights.Manifest."""
        ...

    async def save(self, folder: Path) -> None:
        """Write everything ``restore`` needs, and the policy in Hugging Face format in ``folder/policy``. What is
        called after it waits for it, and does not change what is written.
        """
        ...

    async def restore(self, folder: Path, written_by: int) -> None:
        """Continue from ``save`` by ``written_by`` ranks; bit-equal when that is this world size."""
        ...

    async def reform(self, lost: LearnerLost) -> None:
        """Start again after ``lost``, with the model's own weights, on as many ranks as there is room for. Raises
        ComponentDied when it has been started too often.
        """
        ...


class WeightTransport(Protocol):
    """Moves weights from the learner to the engines."""

    async def publish(self, step: int) -> Publication:
        """Return when every engine that serves has proved the learner's weights; one that fails is taken out of service
        and replaced. Raises WeightsNotProved when none proves them.
        """
        ...


class PromptSource(Protocol):
    """Training prompts by number, and held-out prompts.

    The position in the data is that number and nothing else: a source has no cursor, so what a resumed run needs is
    the first number that was never issued, which its ledger has.
    """

    def train(self, index: int) -> Prompt:
        """Training prompt number ``index`` of the run (0, 1, ...), without end. Its id sorts in this order."""
        ...

    def heldout(self, count: int) -> Sequence[Prompt]:
        """The first ``count`` held-out prompts; none of them is ever a training prompt."""
        ...


class Events(Protocol):
    """Where components report what a user should see, at any time."""

    def note(self, text: str) -> None:
        """Something worth a line, such as a worker that was replaced."""
        ...

    def workers(self, workers: Sequence[WorkerStatus]) -> None:
        """The rollout workers, whenever one changes."""
        ...

    def starting(self, name: str, seconds: float) -> AbstractContextManager[None]:
        """Enter while the component ``name`` starts with the run, for which it has ``seconds``."""
        ...


class Observer(Protocol):
    """Who is told what happens; telemetry in a run, a list in a test."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Entered while a stage is at work."""
        ...

    def lost(self, lost: GroupLost) -> None:
        """A group was lost and is issued again."""
        ...

    def step_done(self, record: StepRecord) -> None:
        """A step is being committed: what is written here belongs to its transaction."""
        ...

    def score(self, name: str) -> float | None:
        """The value of a metric, or of the newest evaluation, for the step that was done last; None: not measured."""
        ...

    def evidence(self) -> str:
        """Where the groups of the step that was done last can be read."""
        ...


class Components(Protocol):
    """What a composition root hands to the loop."""

    @property
    def rollout(self) -> RolloutEngine:
        """Samples responses."""
        ...

    @property
    def verifier(self) -> Verifier:
        """Scores them."""
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
        """An engine that keeps its weights until the context ends, while the run goes on without it. None when there is
        none to spare. Its ``sample`` raises ComponentDied when it is lost.
        """
        ...

    def busy(self, stage: str) -> list[BusyWorker]:
        """Who is at work on ``stage`` (a name of Observer.stage) at this moment, as far as it is known here: nobody is
        asked. Never raises.
        """
        ...

    async def inspect(self, process: Process) -> str:
        """What a process is doing: state, stack and last log lines. Never raises, and takes seconds at most."""
        ...

    async def scale(self, role: str, count: int) -> str:
        """Have ``count`` workers of a role (rollout, verifier) from now on, in the background; returns what happens.
        ConfigError when there is no such role.
        """
        ...

    async def close(self) -> None:
        """End every process that this run started. Never raises."""
        ...
