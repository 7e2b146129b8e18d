"""Every type that crosses a border between components. Each stage wraps the one before, so no field is ever unset.

Made by: the prompt source (Prompt), rollout engines (PromptGroup), the verifier service (ScoredGroup), the target
builder (TargetGroup), packing (TrainBatch), the learner (StepReport). Read by: the next stage, and telemetry.
Arrays are numpy: pickled without copies by Ray, and read-only after it. Shapes: K responses, T tokens of a response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
FinishReason = Literal["stop", "length"]
Key = tuple[str, int]
"""(prompt id, attempt): names a group in the run"""
ScoringItem = tuple[IntArray, Sequence[IntArray]]
"""a prompt's tokens, and those of some of its responses"""


def _same_length(what: str, expected: int, **lengths: int) -> None:
    for name, length in lengths.items():
        if length != expected:
            raise ValueError(f"{what}: {name} has {length} entries, expected {expected}")


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One question. Made by the prompt source.

    Example: ``Prompt("train-00000007", np.array([22, 15, 14]), '{"numbers": [3, 4, 7], "target": 5}', "countdown")``
    """

    prompt_id: str
    """unique in the run; sorts in data order"""
    token_ids: IntArray
    """[T] what the engine is given and the learner conditions on"""
    answer: str
    """opaque to the system; only the verifier reads it"""
    verifier: str
    """see task.verifier"""
    row: Mapping[str, Any] = field(default_factory=dict)
    """the dataset's other columns, for verifiers that want them"""

    def __post_init__(self) -> None:
        if len(self.token_ids) == 0:
            raise ValueError(f"prompt {self.prompt_id} has no tokens")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn. Probabilities are those of the *sampling* temperature."""

    group_size: int
    temperature: float
    max_tokens: int
    seed: int
    """run seed; each response's own seed is derived from (seed, prompt id, attempt, index)"""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """One sampled output, the stop token included. Made by a rollout engine."""

    token_ids: IntArray
    """[T] exactly what was sampled; never retokenised"""
    behaviour_logprobs: FloatArray
    """[T] log pi_b of each token under the distribution it was sampled from, as the engine reports it"""
    versions: IntArray
    """[T] step of the weights that sampled each token"""
    finish_reason: FinishReason

    def __post_init__(self) -> None:
        if len(self.token_ids) == 0:
            raise ValueError("a response has no tokens; expected at least the stop token")
        _same_length(
            "response",
            len(self.token_ids),
            behaviour_logprobs=len(self.behaviour_logprobs),
            versions=len(self.versions),
        )


class GroupColumns(NamedTuple):
    """The responses of a group end to end, T_sum tokens in all: how a group travels and is stored."""

    lengths: tuple[int, ...]
    """[K]"""
    token_ids: IntArray
    """[T_sum]"""
    behaviour_logprobs: FloatArray
    """[T_sum]"""
    versions: IntArray
    """[T_sum]"""
    finish_reasons: tuple[FinishReason, ...]
    """[K]"""


@dataclass(frozen=True, slots=True, eq=False)
class PromptGroup:
    """One prompt and its K responses: the atom of the system. Made by a rollout engine."""

    prompt: Prompt
    attempt: int
    """0 for the first issue of the prompt, +1 for each reissue"""
    responses: tuple[Response, ...]

    def __post_init__(self) -> None:
        if not self.responses:
            raise ValueError(f"group {self.prompt.prompt_id} has no responses")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as columns: a group crosses five borders, and a record and three arrays for each response take 2.5
        times as long to pickle.
        """
        return _group_of_columns, (self.prompt, self.attempt, *self.columns())

    def columns(self) -> GroupColumns:
        """Its responses end to end."""
        rows = self.responses
        return GroupColumns(
            tuple(len(response.token_ids) for response in rows),
            np.concatenate([response.token_ids for response in rows]),
            np.concatenate([response.behaviour_logprobs for response in rows]),
            np.concatenate([response.versions for response in rows]),
            tuple(response.finish_reason for response in rows),
        )

    @classmethod
    def of_columns(cls, prompt: Prompt, attempt: int, columns: GroupColumns) -> PromptGroup:
        """The group whose ``columns`` these are. Its arrays are views of them."""
        lengths, *arrays, reasons = columns
        ends = np.cumsum(lengths)[:-1]
        rows = zip(*(np.split(array, ends) for array in arrays), reasons, strict=True)
        return cls(prompt, attempt, tuple(Response(*row) for row in rows))

    @property
    def key(self) -> Key:
        """Its name in the run."""
        return self.prompt.prompt_id, self.attempt

    @property
    def oldest_version(self) -> int:
        """Step of the oldest weights that sampled any token of the group."""
        return int(min(response.versions.min() for response in self.responses))

    @property
    def num_tokens(self) -> int:
        """Response tokens of the group."""
        return sum(len(response.token_ids) for response in self.responses)

    @property
    def num_bytes(self) -> int:
        """Of its arrays."""
        arrays = [a for r in self.responses for a in (r.token_ids, r.behaviour_logprobs, r.versions)]
        return self.prompt.token_ids.nbytes + sum(array.nbytes for array in arrays)


def _group_of_columns(prompt: Prompt, attempt: int, *columns: Any) -> PromptGroup:  # noqa: ANN401 - from pickle
    return PromptGroup.of_columns(prompt, attempt, GroupColumns(*columns))


@dataclass(frozen=True, slots=True, eq=False)
class ScoredGroup:
    """A group with K real verdicts. Made by the verifier service."""

    group: PromptGroup
    rewards: FloatArray
    """[K] finite"""
    details: tuple[str, ...] = ()
    """[K] what the verifier said beside each reward, or empty: nobody needs it but a reader"""

    def __post_init__(self) -> None:
        _same_length(f"group {self.group.prompt.prompt_id}", len(self.group.responses), rewards=len(self.rewards))
        if not np.isfinite(self.rewards).all():
            raise ValueError(f"group {self.group.prompt.prompt_id} has rewards {self.rewards}, expected finite numbers")


@dataclass(frozen=True, slots=True, eq=False)
class AnchorGroup:
    """How the policy before the step's first update, pi_t, sees the responses of a group that pi_b sampled: the anchor
    of its target, and how far the two are apart. Made by the learner in one pass without gradient; zeros where pi_b is
    pi_t by definition (``zero_anchor``). With delta = log pi_t - log pi_b of a token:

    Example: ``AnchorGroup(np.array([0.1, -0.2]), np.array([0.15, 0.2]), np.array([0.012, 0.021]))``
    """

    log_ratio: FloatArray
    """[K] s_t: mean (or sum) of delta over the response's tokens"""
    drift: FloatArray
    """[K] mean over tokens of abs(delta), nats"""
    mismatch_kl: FloatArray
    """[K] mean over tokens of the k3 estimate of KL(pi_b || pi_t), expm1(delta) - delta, nats"""

    def __post_init__(self) -> None:
        _same_length("anchor", len(self.log_ratio), drift=len(self.drift), mismatch_kl=len(self.mismatch_kl))

    def __len__(self) -> int:
        return len(self.log_ratio)


Anchor = tuple[AnchorGroup, ...]
"""of each group of a step, in the groups' order"""


def zero_anchor(groups: Sequence[ScoredGroup]) -> Anchor:
    """The anchor of groups whose behaviour is the policy before the step's first update: nothing differs."""
    zeros = (np.zeros(len(scored.rewards), dtype=np.float32) for scored in groups)
    return tuple(AnchorGroup(array, array, array) for array in zeros)


@dataclass(frozen=True, slots=True, eq=False)
class AnchorPiece:
    """The anchor of some responses of a group, as one rank found it."""

    key: Key
    """of the group"""
    responses: tuple[int, ...]
    """their indices in the group"""
    anchor: AnchorGroup
    """of these responses"""


@dataclass(frozen=True, slots=True, eq=False)
class TargetGroup:
    """A scored group with its target on the simplex. Made by the target builder (LPO, Theorem 1)."""

    scored: ScoredGroup
    log_target: FloatArray
    """[K] log w*; for K = 1 the log of the virtual group's sigmoid((R - b)/tau)"""
    anchor: AnchorGroup
    """as the learner measured it; zeros when on-policy"""
    temperature: float
    """tau"""
    tempering: float = 1.0
    """lambda in [0, 1]: the group counts as sampled from pi_b^lambda pi_t^(1 - lambda); 1 is pi_b itself"""

    def __post_init__(self) -> None:
        size = len(self.scored.rewards)
        _same_length(
            f"group {self.group.prompt.prompt_id}", size, log_target=len(self.log_target), anchor=len(self.anchor)
        )
        if not 0.0 <= self.tempering <= 1.0:
            raise ValueError(f"group {self.group.prompt.prompt_id}: tempering is {self.tempering}, expected 0 to 1")

    @property
    def offset(self) -> DoubleArray:
        """[K] (1 - lambda) s_t: log-ratio of the mixture that the group counts as sampled from to pi_b. What is
        subtracted from a log-ratio to pi_b to have the one to the mixture; exactly 0 when lambda is 1.
        """
        return (1.0 - self.tempering) * self.anchor.log_ratio.astype(np.float64)

    @property
    def start(self) -> DoubleArray:
        """[K] lambda s_t: log-ratio of pi_t to that mixture, which is the anchor in the target."""
        return self.anchor.log_ratio.astype(np.float64) - self.offset

    @property
    def group(self) -> PromptGroup:
        """The sampled group inside."""
        return self.scored.group


class Grouped(Protocol):
    """A record around a PromptGroup: ScoredGroup and TargetGroup."""

    @property
    def group(self) -> PromptGroup:
        """The sampled group inside."""
        ...


G = TypeVar("G", bound=Grouped)


@dataclass(frozen=True, slots=True, eq=False)
class Piece(Generic[G]):
    """Responses of one group that stand in one micro-batch: all of them, or some of a group that was split."""

    item: G
    responses: tuple[int, ...]
    """their indices in the group, ascending"""

    @property
    def is_whole(self) -> bool:
        """Whether all responses of the group are here."""
        return len(self.responses) == len(self.item.group.responses)


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch(Generic[G]):
    """Pieces of one forward. May be empty: every rank runs the same number of forwards."""

    pieces: tuple[Piece[G], ...]

    @property
    def is_split(self) -> bool:
        """Whether a group here has responses elsewhere."""
        return not all(piece.is_whole for piece in self.pieces)


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One optimiser update: micro-batches per rank and the denominators of the whole update."""

    shares: tuple[tuple[MicroBatch[TargetGroup], ...], ...]
    """[rank][i]; every rank has the same number"""
    num_prompts: int
    """over all ranks and micro-batches: the loss is divided by this, never by a local count"""
    num_tokens: int
    """response tokens over all ranks and micro-batches"""
    tokens_by_rank: tuple[int, ...]
    """tokens of the forwards of each rank"""

    @property
    def imbalance(self) -> float:
        """Share of the ranks' time that is spent waiting for the rank with the most tokens, if all are as fast."""
        return 1.0 - sum(self.tokens_by_rank) / (len(self.tokens_by_rank) * max(self.tokens_by_rank))


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """All updates of one step. Made by packing, read by the learner."""

    step: int
    updates: tuple[Update, ...]
    learning_rate: float


@dataclass(frozen=True, slots=True, eq=False)
class ProjectedGroup:
    """What the learner saw of one group at its update: enough to recompute the loss. From one rank it may cover a
    piece of the group only; merged, it covers all of it. Arrays are over ``responses``.
    """

    prompt_id: str
    attempt: int
    update: int
    responses: tuple[int, ...]
    """their indices in the group"""
    log_ratio: FloatArray
    """s_theta before this update, to pi_b itself; the simplex is that of s_theta minus the target's ``offset``"""
    surrogate: FloatArray
    """what each response adds to the differentiated loss: its coefficient times its clipped log-ratio"""
    coefficient: FloatArray
    """c_k"""
    loss: float
    """divergence of the whole group"""
    entropy: FloatArray
    """mean token entropy, nats"""
    clip_fraction: FloatArray
    """share of tokens outside the clip band"""
    engine_mismatch: FloatArray
    """mean over tokens of log pi_engine - log pi_behaviour; 0 up to rounding when engine and learner agree"""
    engine_drift: FloatArray
    """mean over tokens of the same, absolute: AnchorGroup's drift, for a behaviour that the learner recomputed"""
    engine_kl: FloatArray
    """mean over tokens of the k3 estimate of KL(pi_engine || pi_behaviour), nats: AnchorGroup's mismatch_kl likewise"""
    reference_kl: FloatArray
    """mean over tokens of the k3 estimate of KL(policy || reference), nats; 0 without a reference"""

    @property
    def key(self) -> Key:
        """The group's name in the run."""
        return self.prompt_id, self.attempt


@dataclass(frozen=True, slots=True, eq=False)
class AfterGroup:
    """How the policy after a step's last update sees the responses of a group. Made by ``after.Measurement``."""

    log_ratio: FloatArray
    """[K] s_theta, to pi_b itself, as in ProjectedGroup"""
    token_log_ratio: tuple[FloatArray, ...]
    """of each response, [T] log pi_theta - log pi_b"""

    def __post_init__(self) -> None:
        _same_length("after", len(self.log_ratio), token_log_ratio=len(self.token_log_ratio))


@dataclass(frozen=True, slots=True)
class NotFinite:
    """A number that is not finite, and where it came up first."""

    what: str
    """"log-prob" or "loss"; or "gradient", whose source the forward pass does not show: then the response that weighs
    most in the update stands here
    """
    prompt_id: str
    attempt: int
    response: int
    token: int | None
    """index in the response, where it is known"""

    def __str__(self) -> str:
        where = "" if self.token is None else f", token {self.token}"
        return f"{self.what} of {self.prompt_id} (attempt {self.attempt}), response {self.response}{where}"


@dataclass(frozen=True, slots=True)
class StepNorms:
    """What one optimiser step did. Norms are over all ranks."""

    gradient: float
    """before clipping"""
    applied: bool
    """False: the gradient was not finite, the weights are as before"""
    gradient_by_kind: Mapping[str, float]
    """embedding, attention, mlp, norm, head, other -> gradient norm before clipping"""
    update_ratio_by_kind: Mapping[str, float]
    """the same kinds -> norm of the update over norm of the weights; empty when not applied"""


@dataclass(frozen=True, slots=True, eq=False)
class UpdateReport:
    """One optimiser update, as one rank reports it, or merged over ranks."""

    groups: tuple[ProjectedGroup, ...]
    norms: StepNorms
    forwards: int
    """forward passes this rank ran, empty ones included"""
    padding: float
    """share of the forwards' positions that held no token"""
    not_finite: tuple[NotFinite, ...]
    """the first of each micro-batch"""

    @property
    def loss(self) -> float:
        """Mean over prompts of the divergence."""
        return float(np.mean([group.loss for group in self.groups])) if self.groups else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class StepReport:
    """All updates of one step. Made by the learner, read by telemetry."""

    updates: tuple[UpdateReport, ...]

    @property
    def groups(self) -> tuple[ProjectedGroup, ...]:
        """Groups of all updates, in update order."""
        return tuple(group for update in self.updates for group in update.groups)

    @property
    def loss(self) -> float:
        """Mean over the step's prompts of the divergence at the update that trained them."""
        return float(np.mean([group.loss for group in self.groups]))


@dataclass(frozen=True, slots=True)
class WeightsVersion:
    """Identity of published weights: the step that made them and the digest of the bytes."""

    step: int
    digest: str

    def __str__(self) -> str:
        return f"{self.step}:{self.digest[:12]}"


WorkerState = Literal["starting", "serving", "lent", "out", "leaving"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One rollout worker, as users see it."""

    name: str
    state: WorkerState
    """starting: its engine is being built, or waits for its first weights; out: it failed and is being replaced, or was
    given up; leaving: it gets no new groups, and ends those that it has
    """
    version: WeightsVersion | None
    """of the weights it has proved to serve"""
    restarts: int
    detail: str
    """why it was taken out last; empty if it never was"""


@dataclass(frozen=True, slots=True)
class Process:
    """Where a component runs.

    Example: ``Process(4711, "0f3c...", "10.0.0.3", ("/tmp/ray/.../worker-1.out", "/tmp/ray/.../worker-1.err"))``
    """

    pid: int
    node_id: str
    """Ray's name of the machine; empty without Ray"""
    host: str
    """address or name of the machine"""
    logs: tuple[str, ...]
    """files of its standard output and error"""
    oom_kills: int = 0
    """processes that the machine's kernel had killed for lack of memory when this one started"""


@dataclass(frozen=True, slots=True)
class BusyWorker:
    """Who is at work on a stage, and on what. Made by components, read by the watchdog.

    Example: ``BusyWorker("rollout worker 1", "12 groups, oldest train-00000012 attempt 0", 1_700_000_000.0, process)``
    """

    name: str
    doing: str
    since: float | None
    """unix seconds; None: for as long as the stage"""
    process: Process | None
    """None: it has none, such as a worker whose process is being started"""

    @staticmethod
    def of_groups(name: str, groups: Mapping[Key, float], process: Process | None) -> BusyWorker:
        """Who holds ``groups``, at least one: key -> unix seconds since when."""
        oldest = min(groups, key=lambda key: groups[key])
        count = f"{len(groups)} group{'s' * (len(groups) > 1)}"
        return BusyWorker(name, f"{count}, oldest {oldest[0]} attempt {oldest[1]}", groups[oldest], process)


@dataclass(frozen=True, slots=True)
class Publication:
    """One publish: what arrived where, and what it took. Made by the transport, read by telemetry."""

    version: WeightsVersion
    num_bytes: int
    """sent to each engine"""
    seconds: float
    """from the first gather to the last proof"""
    workers: tuple[WorkerStatus, ...]
    difference: float
    """largest, between the engines' log-probs of the probe and the learner's"""
    phases: Mapping[str, float]
    """prepare, transfer, prove -> seconds, of the attempt that succeeded"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the sample lane holds when a step is done. Made by the sample lane, read by telemetry.

    Example: ``Backlog(on_the_way=40, waiting=24, num_bytes=9_000_000, sampled_tokens=11_500)``
    """

    on_the_way: int
    """groups that are being sampled or verified"""
    waiting: int
    """scored groups that wait to be trained"""
    num_bytes: int
    """of the groups that have a place, those of the step included; a group on its way counts as the largest possible"""
    sampled_tokens: int
    """response tokens of the groups that were scored since the step before"""


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """One finished step, for the observer. ``step`` counts from 1: it is the version of the weights it made."""

    step: int
    batch: TrainBatch
    targets: Sequence[TargetGroup]
    report: StepReport
    publication: Publication
    groups: Mapping[str, int]
    """ledger counts"""
    left_out: Mapping[str, int]
    """why -> groups that were collected for the step and not trained by it: equal_rewards, off_policy, cut"""
    reused: int
    """groups that were trained before"""
    backlog: Backlog
    after: Mapping[Key, AfterGroup] = field(default_factory=dict)
    """of the groups that were measured"""
