"""Errors that a user can meet. One tree, each picklable: Ray moves them between processes.

A message says what happened (with the value), what was expected, and what to do.
Constructors keep their arguments in ``args`` so that ``pickle`` can rebuild them.
"""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override


class LpoRayError(Exception):
    """Base of all lpo-ray errors; ``exit_code`` is that of the command line."""

    exit_code = 1


class ConfigError(LpoRayError):
    """A request that cannot be carried out as written. Raised before anything expensive starts."""

    exit_code = 2


class DataError(ConfigError):
    """A dataset that is missing, empty or malformed; names the file and the row."""


class NoRoom(ConfigError):
    """A role that the cluster cannot hold; names the bundle, what is lacking, and on which nodes."""


class RunBusy(ConfigError):
    """A run folder or evaluation that another process is writing."""


class DoesNotFit(ConfigError):
    """A configuration that needs more than the cluster has; each reason says what, how much, and what to do."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons

    def __str__(self) -> str:
        return "\n".join(["the run does not fit:", *(f"- {reason}" for reason in self.reasons)])


class GroupLost(LpoRayError):
    """A group that could not be sampled or scored. Its prompt is issued again; it is never trained as reward 0."""

    def __init__(self, prompt_id: str, attempt: int, reason: str) -> None:
        super().__init__(prompt_id, attempt, reason)
        self.prompt_id, self.attempt, self.reason = prompt_id, attempt, reason

    def __str__(self) -> str:
        return f"group {self.prompt_id} (attempt {self.attempt}) was lost: {self.reason}"


class Unscored(GroupLost):
    """A group with a response that the verifier has no verdict on: its own affair or its row's, not the service's."""


class UnusableRow(LpoRayError):
    """A row whose answer the verifier cannot read. Its prompt is left out; the run continues with others."""

    def __init__(self, prompt_id: str, reason: str) -> None:
        super().__init__(prompt_id, reason)
        self.prompt_id, self.reason = prompt_id, reason

    def __str__(self) -> str:
        return f"prompt {self.prompt_id} cannot be used: {self.reason}"


class TooManyLost(LpoRayError):
    """A prompt that was lost at every attempt, or groups that are lost faster than they are trained."""


class TooManyUnscored(LpoRayError):
    """Prompts that were left out since the verifier has no verdict on some response of theirs, again and again."""

    def __init__(self, unscored: int, done: int, limit: float, last: str) -> None:
        super().__init__(unscored, done, limit, last)
        self.unscored, self.done, self.limit, self.last = unscored, done, limit, last

    def __str__(self) -> str:
        return (
            f"{self.unscored} of {self.done} prompts were left out because a response of theirs stayed unscored at "
            f"every attempt, the last {self.last}. Expected a share of at most {self.limit:g} "
            "(pipeline.max_unscored_share): correct the verifier, the environment or the rows, or raise the limit, "
            "then continue with run.resume=auto"
        )


class DeadlineExceeded(LpoRayError):
    """A component that did not answer in time; names the wait, and shows what its process was doing if known."""

    def __init__(self, who: str, what: str, seconds: float, evidence: str = "") -> None:
        super().__init__(who, what, seconds, evidence)
        self.who, self.what, self.seconds, self.evidence = who, what, seconds, evidence

    def with_evidence(self, evidence: Sequence[str]) -> DeadlineExceeded:
        """Make the same error with what was seen of the processes that are late."""
        return DeadlineExceeded(self.who, self.what, self.seconds, "\n".join(evidence))

    def __str__(self) -> str:
        return (
            f"{self.who} did not finish '{self.what}' within {self.seconds:.3g} s. Expected an answer by then; look at "
            f"its log, or raise the deadline in the config if the work is that long"
            + (f"\n{self.evidence}" if self.evidence else "")
        )


class NoProgress(DeadlineExceeded):
    """A component that got on with nothing for too long: it hangs. Work that takes long does not end in this."""

    def __init__(self, who: str, what: str, seconds: float, setting: str, evidence: str = "") -> None:
        super().__init__(who, what, seconds, evidence)
        self.args, self.setting = (who, what, seconds, setting, evidence), setting

    @override
    def with_evidence(self, evidence: Sequence[str]) -> NoProgress:
        return NoProgress(self.who, self.what, self.seconds, self.setting, "\n".join(evidence))

    def __str__(self) -> str:
        return (
            f"{self.who} did not finish '{self.what}', and got on with nothing for {self.seconds:.3g} s "
            f"({self.setting}). Expected a sign of life by then, however long the work is; look at its log"
            + (f"\n{self.evidence}" if self.evidence else "")
        )


class ComponentDied(LpoRayError):
    """A rollout worker, verifier service, target builder or learner rank that is gone; carries its last words."""

    def __init__(self, who: str, cause: str) -> None:
        super().__init__(who, cause)
        self.who, self.cause = who, cause

    def __str__(self) -> str:
        return f"{self.who} died: {self.cause}"


class LearnerLost(ComponentDied):
    """A learner rank that died, hangs, or has lost the others. Only a restart of all ranks helps."""

    def __str__(self) -> str:
        return self.cause if self.cause.startswith(self.who) else super().__str__()


class ComponentFailed(LpoRayError):
    """A call that ended in an error that is not one of ours, while its component is alive; carries it as text."""

    def __init__(self, who: str, what: str, cause: str) -> None:
        super().__init__(who, what, cause)
        self.who, self.what, self.cause = who, what, cause

    def __str__(self) -> str:
        return f"{self.who} failed to '{self.what}': {self.cause}"


class WeightsNotProved(LpoRayError):
    """An engine that does not serve the weights that were published to it."""

    def __init__(self, engine: str, version: str, difference: float, tolerance: float, why: str) -> None:
        super().__init__(engine, version, difference, tolerance, why)
        self.engine, self.version, self.difference, self.tolerance, self.why = (
            engine,
            version,
            difference,
            tolerance,
            why,
        )

    def __str__(self) -> str:
        return (
            f"{self.engine} does not serve weights version {self.version}: {self.why} (log-prob difference "
            f"{self.difference:.3g} nats, tolerated {self.tolerance:.3g}). Its samples would come from other weights "
            "than the learner's"
        )


class CheckpointDamaged(LpoRayError):
    """A checkpoint that cannot be restored: a file is missing, cut short or changed, or it is of another model."""

    def __init__(self, checkpoint: str, why: str) -> None:
        super().__init__(checkpoint, why)
        self.checkpoint, self.why = checkpoint, why

    def __str__(self) -> str:
        return (
            f"checkpoint {self.checkpoint} cannot be restored: {self.why}. Expected what was written when it was "
            "saved; remove this checkpoint's folder to continue from the one before it"
        )


class CheckpointFailed(LpoRayError):
    """A checkpoint that could not be written; those before it are as they were."""

    def __init__(self, checkpoint: str, why: str) -> None:
        super().__init__(checkpoint, why)
        self.checkpoint, self.why = checkpoint, why

    def __str__(self) -> str:
        return (
            f"checkpoint {self.checkpoint} could not be written: {self.why}. Nothing of it is left and earlier "
            "checkpoints are untouched; free space or fix the disk, then continue with run.resume=auto"
        )


class NumbersNotFinite(LpoRayError):
    """Too many updates in a row that were dropped because their loss or gradient was NaN or Inf."""

    def __init__(self, skipped: int, step: int, where: str, evidence: str) -> None:
        super().__init__(skipped, step, where, evidence)
        self.skipped, self.step, self.where, self.evidence = skipped, step, where, evidence

    def __str__(self) -> str:
        return (
            f"{self.skipped} updates in a row had a NaN or Inf as loss or gradient and were skipped, the last in "
            f"step {self.step}: {self.where}. Expected finite numbers; the weights are those before the first of them. "
            f"The groups are in {self.evidence}"
        )


class LedgerUnbalanced(LpoRayError):
    """A ledger whose counts of issued, trained and lost prompts do not balance."""

    def __init__(self, run_dir: str, violations: Sequence[str]) -> None:
        super().__init__(run_dir, violations)
        self.run_dir, self.violations = run_dir, violations

    def __str__(self) -> str:
        return (
            f"the ledger of {self.run_dir} does not balance: {'; '.join(self.violations)}. Expected every prompt to be "
            "accounted for once; keep the folder, and report it with ledger.sqlite"
        )


class ChecksFailed(LpoRayError):
    """Checks that found something missing or broken on a machine."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.names = names

    def __str__(self) -> str:
        return (
            f"{len(self.names)} checks failed: {', '.join(self.names)}. Expected none; the table says what to do about "
            "each"
        )


class NothingToTrain(LpoRayError):
    """A step all of whose groups were left out as too far from the policy."""

    def __init__(self, step: int, dropped: int, reason: str) -> None:
        super().__init__(step, dropped, reason)
        self.step, self.dropped, self.reason = step, dropped, reason

    def __str__(self) -> str:
        return (
            f"step {self.step + 1} has nothing to train: all {self.dropped} groups were left out (objective.stale), "
            f"the last because {self.reason}. Expected engine and learner to agree better: lower "
            "pipeline.max_staleness or learner.lr, set objective.stale.policy=temper, or compare rollout.dtype with "
            "model.dtype"
        )


class ReplayDiffers(LpoRayError):
    """A recorded step that gave other weights when it was computed again."""


class RunFailed(LpoRayError):
    """A run of a comparison that ended with an error; carries its last lines."""

    def __init__(self, run: str, code: int, log: str, last_lines: Sequence[str]) -> None:
        super().__init__(run, code, log, last_lines)
        self.run, self.code, self.log, self.last_lines = run, code, log, last_lines

    def __str__(self) -> str:
        said = "\n".join(f"    {line}" for line in self.last_lines)
        return (
            f"run {self.run} ended with exit code {self.code}. Expected 0; all it said is in {self.log}, at the end:\n"
            f"{said}"
        )


class RunsFailed(LpoRayError):
    """Runs of a comparison that failed; the others are compared."""

    def __init__(self, runs: Sequence[str], total: int) -> None:
        super().__init__(runs, total)
        self.runs, self.total = runs, total

    def __str__(self) -> str:
        return (
            f"{len(self.runs)} of {self.total} runs failed: {', '.join(self.runs)}. Expected none; the same command "
            "continues with them, and runs again only what has not finished"
        )


class Interrupted(LpoRayError):
    """A signal that asked the run to end; the work done so far is committed."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(signal_number, step)
        self.signal_number, self.step = signal_number, step
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return f"stopped by signal {self.signal_number} after step {self.step}; continue with run.resume=auto"


class RunNotDone(LpoRayError):
    """A run that was followed and did not come to its end, without an error of its own: stopped, or out of sight."""

    def __init__(self, run: str, job: str, state: str) -> None:
        super().__init__(run, job, state)
        self.run, self.job, self.state = run, job, state

    def __str__(self) -> str:
        if self.state == "STOPPED":
            return f"{self.run} was stopped before its end (job {self.job}); continue with run.resume=auto"
        return (
            f"{self.run} says no more, and has not ended (job {self.job}: {self.state}): its head may have gone; "
            f"follow it again with lpo-ray logs {self.run} --follow"
        )


class EvaluationInterrupted(Interrupted):
    """A signal that asked an evaluation to end; the results so far are kept."""

    def __str__(self) -> str:
        return f"stopped by signal {self.signal_number}; the results so far are kept: the same command continues"
