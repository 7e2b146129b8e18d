"""Groups, from a prompt to its target on the simplex: each stage wraps the one before, so no field is ever unset.

Made by: the prompt source (Prompt), rollout engines (PromptGroup), the verifier service (ScoredGroup), the learner
(AnchorGroup), the target builder (TargetGroup). Shapes: K responses, T tokens of a response.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from lpo_ray.records.arrays import DoubleArray, FloatArray, IntArray, check_lengths, joined, run_starts
from lpo_ray.records.conversations import Conversation, ConversationColumns, Segment

FinishReason = Literal["stop", "length"]
Key = tuple[str, int]
"""(prompt id, attempt): the name of a group in the run"""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One question, made by the prompt source.

    Example: ``Prompt("train-00000007", np.array([22, 15, 14]), '{"numbers": [3, 4, 7], "target": 5}', "countdown")``
    """

    prompt_id: str
    """unique in the run; sorts in data order"""
    token_ids: IntArray
    """[T] what the engine is given and the learner conditions on"""
    answer: str
    """the right answer as text; only the verifier reads it"""
    verifier: str
    """a value of task.verifier"""
    row: Mapping[str, Any] = field(default_factory=dict)
    """other columns of the data set, for verifiers that want them, and its prompt as ``prompt``"""
    raw_answer: Any = None
    """the right answer in its own type: a number, a list, a mapping; None: its text is all there is"""

    def __post_init__(self) -> None:
        if len(self.token_ids) == 0:
            raise ValueError(f"prompt {self.prompt_id} has no tokens")


@dataclass(frozen=True, slots=True)
class Sampling:
    """Parameters of sampling. Probabilities are those of the *sampling* temperature."""

    group_size: int
    temperature: float
    max_tokens: int
    seed: int
    """run seed; each response's own seed is derived from (seed, prompt id, attempt, index)"""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    """tokens that end a response, beside the model's own end tokens"""
    max_turns: int = 1
    """of a conversation; ``max_tokens`` is for each of them"""
    max_conversation_tokens: int | None = None
    """context and turns together, those of the environment included; None: as far as the engine's context goes"""


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """One sampled output, the stop tokens included, made by a rollout engine: one answer, or all turns of a
    conversation.
    """

    token_ids: IntArray
    """[T] exactly what was sampled, of all turns; never retokenised"""
    behaviour_logprobs: FloatArray
    """[T] log pi_b of each token under the distribution it was sampled from, as the engine reports it"""
    versions: IntArray
    """[T] step of the weights that sampled each token"""
    finish_reason: FinishReason
    conversation: Conversation | None = None
    """None: one answer behind the prompt, all of it sampled"""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Where the sampled tokens stand: one segment behind the prompt when there was no conversation."""
        return (Segment.answer(self.token_ids),) if self.conversation is None else self.conversation.segments

    @property
    def turns(self) -> tuple[int, ...]:
        """Sampled tokens of each turn; one turn when there was no conversation."""
        return (len(self.token_ids),) if self.conversation is None else self.conversation.turns

    @property
    def last_turn(self) -> IntArray:
        """Tokens of the last turn: what the policy said in the end."""
        return self.token_ids[-self.turns[-1] :]

    def said(self, decode: Callable[[IntArray], str]) -> str:
        """Return what a verifier reads: the output of an agent's program, else the last turn as text."""
        output = None if self.conversation is None else self.conversation.output
        return decode(self.last_turn) if output is None else output

    @property
    def num_others(self) -> int:
        """Tokens of its segments that were not sampled, and of their contexts: 0 of a single answer."""
        return (
            0 if self.conversation is None else self.conversation.environment_tokens + self.conversation.context_tokens
        )

    def positions(self, prompt: IntArray) -> tuple[int, int]:
        """Count what it has in a forward: sequences that stand behind ``prompt``, and positions beside the prompt's."""
        if self.conversation is None:
            return 1, len(self.token_ids)
        standing = [segment.standing(prompt) for segment in self.segments]
        tokens = sum(len(segment.token_ids) for segment in self.segments)
        return sum(behind for behind, _ in standing), tokens + sum(len(own) for _, own in standing)

    @property
    def oldest_version(self) -> int:
        """Step of the oldest weights that sampled a token."""
        return int(self.versions[0] if self.versions.strides == (0,) else self.versions.min())

    @property
    def newest_version(self) -> int:
        """Step of the newest weights that sampled a token."""
        return int(self.versions[0] if self.versions.strides == (0,) else self.versions.max())

    def __post_init__(self) -> None:
        if len(self.token_ids) == 0:
            raise ValueError("a response has no tokens; expected at least the stop token")
        check_lengths(
            "response",
            len(self.token_ids),
            behaviour_logprobs=len(self.behaviour_logprobs),
            versions=len(self.versions),
        )
        if self.conversation is not None and not np.array_equal(self.conversation.token_ids, self.token_ids):
            raise ValueError(f"a response of {len(self.token_ids)} tokens has segments that sampled others")

    def for_learner(self) -> Response:
        """Return what a learner needs to score it."""
        return self if self.conversation is None else replace(self, conversation=self.conversation.for_learner())


ScoringItem = tuple[IntArray, Sequence[tuple[Segment, ...]]]
"""tokens of a prompt, and the segments of some of its responses"""


class GroupColumns(NamedTuple):
    """Columns of a group's responses, end to end: the form in which it travels and is stored. T_sum tokens in all."""

    lengths: tuple[int, ...]
    """[K] tokens of each response"""
    token_ids: IntArray
    """[T_sum]"""
    behaviour_logprobs: FloatArray
    """[T_sum]"""
    versions: IntArray
    """[T_sum]"""
    finish_reasons: tuple[FinishReason, ...]
    """[K]"""
    conversations: ConversationColumns | None = None
    """None: all responses are single answers"""


ELSEWHERE = Response(np.zeros(1, np.int64), np.zeros(1, np.float32), np.zeros(1, np.int64), "stop")
"""stands for a response whose tokens are not needed where the group travels to"""


@dataclass(frozen=True, slots=True, eq=False)
class PromptGroup:
    """One prompt and its K responses, made by a rollout engine: what is sampled, scored and trained as a whole."""

    prompt: Prompt
    attempt: int
    """0 for the first issue of the prompt, +1 for each reissue"""
    responses: tuple[Response, ...]

    def __post_init__(self) -> None:
        if not self.responses:
            raise ValueError(f"group {self.prompt.prompt_id} has no responses")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as columns, versions as their runs: 12 bytes a token. A record and three arrays for each response take
        2.5 times as long to pickle.
        """
        rows = self.responses
        return _group_of_runs, (
            self.prompt,
            self.attempt,
            tuple(len(response.token_ids) for response in rows),
            joined([response.token_ids for response in rows]),
            joined([response.behaviour_logprobs for response in rows]),
            tuple(_runs(response.versions) for response in rows),
            tuple(response.finish_reason for response in rows),
            *(() if (found := self._conversations()) is None else (found,)),
        )

    def columns(self) -> GroupColumns:
        """Join the responses end to end."""
        rows = self.responses
        return GroupColumns(
            tuple(len(response.token_ids) for response in rows),
            joined([response.token_ids for response in rows]),
            joined([response.behaviour_logprobs for response in rows]),
            joined([response.versions for response in rows]),
            tuple(response.finish_reason for response in rows),
            self._conversations(),
        )

    def _conversations(self) -> ConversationColumns | None:
        return ConversationColumns.of([response.conversation for response in self.responses])

    def for_learner(self, responses: Collection[int]) -> PromptGroup:
        """Return what a learner needs to score ``responses``, their indices as they are: no other response's tokens,
        and nothing that only a verifier reads.
        """
        prompt = replace(self.prompt, answer="", row={}, raw_answer=None)
        held = (row.for_learner() if k in responses else ELSEWHERE for k, row in enumerate(self.responses))
        return PromptGroup(prompt, self.attempt, tuple(held))

    @classmethod
    def of_columns(cls, prompt: Prompt, attempt: int, columns: GroupColumns) -> PromptGroup:
        """Make the group whose ``columns`` these are. Its arrays are views of them."""
        ends = np.cumsum(columns.lengths)[:-1]
        responses = _responses(
            np.split(columns.token_ids, ends),
            np.split(columns.behaviour_logprobs, ends),
            np.split(columns.versions, ends),
            columns.finish_reasons,
            columns.conversations,
        )
        return cls(prompt, attempt, responses)

    @property
    def key(self) -> Key:
        """Name of the group in the run."""
        return self.prompt.prompt_id, self.attempt

    @property
    def oldest_version(self) -> int:
        """Step of the oldest weights that sampled any token of the group."""
        return min(response.oldest_version for response in self.responses)

    @property
    def newest_version(self) -> int:
        """Step of the newest weights that sampled any token of the group."""
        return max(response.newest_version for response in self.responses)

    @property
    def num_tokens(self) -> int:
        """Response tokens of the whole group: those that were sampled."""
        return sum(len(response.token_ids) for response in self.responses)

    @property
    def num_bytes(self) -> int:
        """Bytes held by its arrays."""
        arrays = [a for r in self.responses for a in (r.token_ids, r.behaviour_logprobs, r.versions)]
        beside = [r.conversation.num_bytes for r in self.responses if r.conversation is not None]
        return self.prompt.token_ids.nbytes + sum(array.nbytes for array in arrays) + sum(beside)


def _runs(versions: IntArray) -> tuple[tuple[int, int], ...]:
    """Return (version, tokens) of each run of equal versions."""
    if versions.strides == (0,):
        return ((int(versions[0]), len(versions)),)
    starts = run_starts(versions)
    ends = [*starts[1:], len(versions)]
    return tuple((int(versions[start]), end - start) for start, end in zip(starts, ends, strict=True))


def _versions(runs: Sequence[tuple[int, int]]) -> IntArray:
    """Make the array of ``runs``. It takes no memory where all tokens are of one version."""
    if len(runs) == 1:
        return np.broadcast_to(np.int64(runs[0][0]), (runs[0][1],))
    values, counts = zip(*runs, strict=True)
    return np.repeat(np.array(values, dtype=np.int64), counts)


def _group_of_runs(
    prompt: Prompt,
    attempt: int,
    lengths: Sequence[int],
    token_ids: IntArray,
    logprobs: FloatArray,
    runs: Sequence[Sequence[tuple[int, int]]],
    reasons: Sequence[FinishReason],
    conversations: ConversationColumns | None = None,
) -> PromptGroup:
    ends = np.cumsum(lengths)[:-1]
    rows = np.split(token_ids, ends), np.split(logprobs, ends), [_versions(run) for run in runs], reasons
    return PromptGroup(prompt, attempt, _responses(*rows, conversations))


def _responses(
    token_ids: Sequence[IntArray],
    logprobs: Sequence[FloatArray],
    versions: Sequence[IntArray],
    reasons: Sequence[FinishReason],
    conversations: ConversationColumns | None,
) -> tuple[Response, ...]:
    beside = [None] * len(token_ids) if conversations is None else conversations.conversations(token_ids)
    return tuple(Response(*row) for row in zip(token_ids, logprobs, versions, reasons, beside, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class ScoredGroup:
    """A group with K verdicts that are real, made by the verifier service."""

    group: PromptGroup
    rewards: FloatArray
    """[K] finite: what the verifier says, and what evaluations and pass rates count"""
    details: tuple[str, ...] = ()
    """[K] what the verifier said beside each reward, for people; or empty"""
    shaping: FloatArray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """[K] what training adds to the rewards, such as a penalty for length; or empty"""

    def __post_init__(self) -> None:
        size, name = len(self.group.responses), self.group.prompt.prompt_id
        check_lengths(f"group {name}", size, rewards=len(self.rewards))
        check_lengths(f"group {name}", size, shaping=len(self.shaping) or size)
        if not np.isfinite(self.shaped).all():
            raise ValueError(f"group {name} has rewards {self.shaped}, expected finite numbers")

    def for_learner(self, responses: Collection[int]) -> ScoredGroup:
        """Return what a learner needs of it to score ``responses``."""
        return replace(self, group=self.group.for_learner(responses), details=())

    @property
    def shaped(self) -> FloatArray:
        """[K] rewards that targets are made of: the verifier's, with what training adds."""
        return self.rewards + self.shaping if len(self.shaping) else self.rewards


@dataclass(frozen=True, slots=True, eq=False)
class AnchorGroup:
    """Anchor of a group's target, and how far the behaviour pi_b is from pi_t, the policy before the step's first
    update. The learner measures it in one pass without gradient. It is zero where pi_b is pi_t by definition
    (``zero_anchor``). With delta = log pi_t - log pi_b of a token:

    Example: ``AnchorGroup(np.array([0.1, -0.2]), np.array([0.15, 0.2]), np.array([0.012, 0.021]))``
    """

    log_ratio: FloatArray
    """[K] s_t: mean (or sum) of delta over the response's tokens"""
    drift: FloatArray
    """[K] mean over tokens of abs(delta), nats"""
    mismatch_kl: FloatArray
    """[K] mean over tokens of the k3 estimate of KL(pi_b || pi_t), expm1(delta) - delta, nats"""

    def __post_init__(self) -> None:
        check_lengths("anchor", len(self.log_ratio), drift=len(self.drift), mismatch_kl=len(self.mismatch_kl))

    def __len__(self) -> int:
        return len(self.log_ratio)


Anchor = tuple[AnchorGroup, ...]
"""anchor of each group of a step, in the groups' order"""


def zero_anchor(groups: Sequence[ScoredGroup]) -> Anchor:
    """Make the anchor of groups whose behaviour is the policy before the step's first update: zeros."""
    zeros = (np.zeros(len(scored.rewards), dtype=np.float32) for scored in groups)
    return tuple(AnchorGroup(array, array, array) for array in zeros)


@dataclass(frozen=True, slots=True, eq=False)
class AnchorPiece:
    """Anchor of some responses of a group, as one rank measured it."""

    key: Key
    """name of the group"""
    responses: tuple[int, ...]
    """their indices in the group"""
    anchor: AnchorGroup
    """one entry for each of ``responses``"""


@dataclass(frozen=True, slots=True, eq=False)
class TargetGroup:
    """A scored group with its target on the simplex, made by the target builder (LPO, Theorem 1)."""

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
        check_lengths(
            f"group {self.group.prompt.prompt_id}", size, log_target=len(self.log_target), anchor=len(self.anchor)
        )
        if not 0.0 <= self.tempering <= 1.0:
            raise ValueError(f"group {self.group.prompt.prompt_id}: tempering is {self.tempering}, expected 0 to 1")

    def for_learner(self, responses: Collection[int]) -> TargetGroup:
        """Return what a learner needs of it to score ``responses``."""
        return replace(self, scored=self.scored.for_learner(responses))

    @property
    def offset(self) -> DoubleArray:
        """[K] (1 - lambda) s_t: log-ratio to pi_b of the mixture that the group counts as sampled from.

        A log-ratio to pi_b minus this is one to the mixture. It is exactly 0 when lambda is 1.
        """
        return (1.0 - self.tempering) * self.anchor.log_ratio.astype(np.float64)

    @property
    def start(self) -> DoubleArray:
        """[K] lambda s_t: log-ratio of pi_t to the mixture, which is the anchor in the target."""
        return self.anchor.log_ratio.astype(np.float64) - self.offset

    @property
    def group(self) -> PromptGroup:
        """The sampled group."""
        return self.scored.group


class Grouped(Protocol):
    """A record around a PromptGroup: ScoredGroup or TargetGroup."""

    def for_learner(self: G, responses: Collection[int]) -> G:
        """Return what a learner needs of it to score ``responses``."""
        ...

    @property
    def group(self) -> PromptGroup:
        """The sampled group."""
        ...


G = TypeVar("G", bound=Grouped)
