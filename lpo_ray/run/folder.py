"""The run's folder: held by one driver, and resumed only as what it was begun with.

``config.yaml`` says what the run was begun with, ``contents.json`` what the files had that it names. Both are written
once the run stands where they say: the learner restored, and the ledger cut there (``RunFolder.record``). A start that
is refused or killed before leaves the folder as it was.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import yaml

from lpo_ray.common.files import PARTIAL, make_folder, write_text
from lpo_ray.common.folder_lock import FolderLock, Held
from lpo_ray.config.load import dump_config, in_new_names
from lpo_ray.config.schema import Config, Resume
from lpo_ray.errors import ConfigError, RunBusy
from lpo_ray.interfaces import PromptSource
from lpo_ray.run import contents, prompting
from lpo_ray.run.contents import Content
from lpo_ray.run.prompting import write_prompting
from lpo_ray.run.spec import RunSpec
from lpo_ray.training import call_store, checkpoint, group_store
from lpo_ray.training.ledger import read_ledger

LOCK = ".lock"
RESUMED_AS_BEGUN = (
    "run.seed", "cluster.kind", "model", "task", "sampling", "pipeline.groups_per_step", "rollout.max_model_len",
)  # fmt: skip
"""what a resumed run may not change: the ledger's prompts and the checkpoint's weights were made with it"""
DECIDES_A_STEP = (
    "objective", "learner", "model", "pipeline.updates_per_step", "pipeline.tokens_per_micro_batch",
    "pipeline.share_prompt", "rollout.dtype", "run.steps",
)  # fmt: skip
"""what the weights after a step depend on, beside its groups"""
BY_CONTENT = (
    "model.path",
    "model.lora.path",
    "task.path",
    "task.heldout_path",
    "task.chat_template",
    "objective.reference_path",
)
"""paths: what is there is compared, wherever it is"""
NEVER_COMPARED = ("model.warmup.cache_dir",)
LEFT_BY_A_START = (
    LOCK,
    "log.jsonl",
    "status.json",
    "summary.json",
    "report.html",
    "trackers",
    contents.FILE,
    prompting.FILE,
)
"""what a start that was refused leaves: nothing of it was sampled or learned"""
PROMPTS_CHECKED = 200


@dataclass(frozen=True, slots=True)
class Start:
    """Plan of a start that may use the run's folder: what it would do with it."""

    is_begun: bool
    recompute: bool = True
    """whether its steps are made as before, so that those since the checkpoint can be computed again"""
    contents: Mapping[str, Content] | None = None
    """of what the configuration points to; None: the run is not begun, and they are not known yet"""
    changed: frozenset[str] = frozenset()
    """keys whose content is another than when the run was begun, with the user's consent"""
    notes: tuple[str, ...] = ()
    """what the user should know of"""


@dataclass
class RunFolder:
    """Folder of a run that this process holds, checked. Made by ``held``."""

    spec: RunSpec
    start: Start
    lock: FolderLock
    _digested: Future[dict[str, Content]] = field(default_factory=Future)

    def check(self) -> None:
        """Raise RunBusy when another driver has taken the folder, while this one was suspended."""
        try:
            self.lock.check()
        except Held as held:
            raise _busy(self.spec.run_dir, held) from held

    @property
    def is_ours(self) -> bool:
        """Whether no other driver has taken the folder."""
        try:
            self.lock.check()
        except (Held, OSError):
            return False
        return True

    def record(self) -> None:
        """Write what the run goes on with, once it stands where that begins. Waits for the digests at a run's begin."""
        found = self.start.contents
        write_prompting(self.spec)
        contents.write_contents(self.spec.run_dir, self._digested.result() if found is None else found)
        write_text(self.spec.run_dir / "config.yaml", dump_config(self.spec.config))

    def digest_now(self) -> None:
        """Digest what the configuration points to, beside whatever else starts: a large model takes its time."""

        def digest() -> None:
            try:
                self._digested.set_result(contents.contents_of(self.spec, {}))
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
                self._digested.set_exception(error)

        threading.Thread(target=digest, name="digests", daemon=True).start()


@contextlib.contextmanager
def held(spec: RunSpec, note: Callable[[str], None]) -> Iterator[RunFolder]:
    """Hold the folder of ``spec``'s run, made if need be. One in which nothing was written is removed again. Raises
    RunBusy, and ConfigError as ``look`` does.
    """
    folder = spec.run_dir
    _check_writable(folder)
    make_folder(folder)
    try:
        with FolderLock(folder / LOCK, note=note) as lock:
            try:
                found = RunFolder(spec, look(spec), lock)
                if found.start.contents is None:
                    found.digest_now()
                yield found
            finally:
                with contextlib.suppress(OSError):
                    if [path.name for path in folder.iterdir()] == [LOCK]:
                        (folder / LOCK).unlink()
                        folder.rmdir()
    except Held as error:
        raise _busy(folder, error) from error


def look(spec: RunSpec) -> Start:
    """Say what a start of ``spec`` may do with the run's folder. Raises ConfigError when it is not this run's, or was
    begun with something else.
    """
    folder, config = spec.run_dir, spec.config
    if config.run.resume is Resume.never and _has_work(folder):
        raise ConfigError(
            f"run folder {folder} exists and is not empty; take another run.name, continue it with run.resume=auto, "
            "or remove it"
        )
    _check_writable(folder)
    if not (folder / "config.yaml").is_file():
        return Start(is_begun=False)
    recorded = contents.read_contents(folder)
    now = contents.contents_of(spec, recorded or {})
    compared = {key: before.difference(now[key]) for key, before in (recorded or {}).items() if key in now}
    differing = {key: difference for key, difference in compared.items() if difference is not None}
    values = _changed_values(spec, set(compared), same=set(compared) - set(differing))
    _refuse_values(folder, {key: found for key, found in values.items() if key not in differing})
    notes = _refuse_contents(spec, differing, values)
    if recorded is None:
        notes.append("what its model and data contained was not recorded when it was begun; it is from now on")
    recompute = not any(_is_in(key, DECIDES_A_STEP) for key in (*values, *differing))
    return Start(True, recompute, now, frozenset(differing), tuple(notes))


def outlook(spec: RunSpec) -> str:
    """Say what ``train`` would do with the run folder: begin, resume after a step, or refuse."""
    folder = spec.run_dir
    try:
        start = look(spec)
    except ConfigError as error:
        return f"refuse: {error}"
    if not start.is_begun and not (folder / "ledger.sqlite").is_file():
        return "begin a new run"
    saved = max(map(checkpoint.step_of, checkpoint.list_checkpoints(folder / "checkpoints")), default=0)
    with read_ledger(folder) as ledger:
        (committed,) = ledger.execute("SELECT max(step) FROM commits").fetchone()
    last = max(saved, committed or 0) if start.recompute else saved
    again = f", computing steps {saved + 1} to {last} again from the groups that made them" if last > saved else ""
    return f"resume after step {last} of {spec.config.run.steps}{again}"


def check_prompts(folder: Path, source: PromptSource) -> None:
    """Check that the data has the same prompts under the numbers that the run issued, where its files have changed: all
    that are owed, and some of the others. Raises ConfigError.
    """
    with read_ledger(folder) as ledger:
        issued = ledger.execute("SELECT DISTINCT data_index, prompt_id FROM attempts ORDER BY data_index").fetchall()
        owed = ledger.execute(
            "SELECT DISTINCT data_index, prompt_id FROM attempts WHERE prompt_id NOT IN "
            "(SELECT prompt_id FROM attempts WHERE state IN ('trained', 'filtered'))"
        ).fetchall()
    some = issued[:: max(1, len(issued) // PROMPTS_CHECKED)]
    for index, prompt_id in dict.fromkeys([*owed, *some]):
        found = source.train(index).prompt_id
        if found != prompt_id:
            raise ConfigError(
                f"prompt {index} of the changed data is {found}, the run in {folder} issued {prompt_id}; expected the "
                "same order, so rows may be mended in place, but not added, removed or moved: put the data back, or "
                "take another run.name"
            )


def _busy(folder: Path, held: Held) -> RunBusy:
    where = "" if held.holder is None or held.holder.process.is_here else f" on {held.holder.process.host}"
    return RunBusy(
        f"run folder {folder} is being driven: {held}. Expected one driver for a folder: wait for it, end it with "
        f"`lpo-ray stop {folder}`{where}, or take another run.name"
    )


def _check_writable(folder: Path) -> None:
    parent = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"run folder {folder} cannot be made: {parent} is not a writable folder; set run.dir")


def _has_work(folder: Path) -> bool:
    """Whether the folder has more than what a start leaves that was refused before it sampled anything."""
    if not folder.is_dir():
        return folder.exists()
    names = {path.name for path in folder.iterdir()}
    databases = ("ledger.sqlite", group_store.FILE, call_store.FILE)
    rest = {name for name in names - {*LEFT_BY_A_START} if not name.startswith((*databases, PARTIAL, ".nfs"))}
    if rest or "ledger.sqlite" not in names:
        return bool(rest)
    with read_ledger(folder) as ledger:
        tables = ledger.execute("SELECT 1 FROM sqlite_master WHERE name = 'attempts'").fetchone()
        return tables is not None and ledger.execute("SELECT 1 FROM attempts").fetchone() is not None


def _changed_values(spec: RunSpec, compared: set[str], same: set[str]) -> dict[str, tuple[object, object]]:
    """Find the keys whose value is not the one that the run was begun with: key -> (begun, now). Where the content is
    the ``same``, its path may be another; where functions' files were ``compared``, their folders may be.
    """
    begun = _values((spec.run_dir / "config.yaml").read_text(encoding="utf-8"))
    now = _values(dump_config(spec.config))
    left_out = {*NEVER_COMPARED, *(key for key in BY_CONTENT if key in same)}
    if spec.config.objective.reference_kl == 0:
        left_out.add("objective.reference_path")
    changed = {
        key: (begun.get(key), now.get(key))
        for key in sorted({*begun, *now} - left_out)
        if begun.get(key) != now.get(key) and (_is_in(key, RESUMED_AS_BEGUN) or _is_in(key, DECIDES_A_STEP))
    }
    return {key: found for key, found in changed.items() if not _is_moved(key, found, compared)}


def _is_moved(key: str, values: tuple[object, object], compared: set[str]) -> bool:
    """Whether two names of functions differ by the folders of their files alone, whose contents were compared."""
    if not any(_is_in(known, (key,)) for known in compared):
        return False
    begun, now = (contents.without_folders(str(value)) for value in values)
    return begun == now


def _values(text: str) -> dict[str, object]:
    """List section.key -> value of a config.yaml, at any depth; a key that an older version did not know has its
    default, and one that it called otherwise its name of now. Older versions had no defaults by device.
    """
    values = _flat(yaml.safe_load(dump_config(Config()))) | _flat(in_new_names(yaml.safe_load(text)))
    by_device = {"learner.gradient_checkpointing": bool(values["learner.gpus_per_rank"]), "learner.threads": 1}
    return values | {key: value for key, value in by_device.items() if values[key] is None}


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    found: dict[str, object] = {}
    for key, item in cast("Mapping[str, object]", value).items():
        found |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def _is_in(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith((f"{section}.", f"{section}[")) for section in sections)


def _refuse_values(folder: Path, values: Mapping[str, tuple[object, object]]) -> None:
    for key, (begun, now) in values.items():
        if _is_in(key, RESUMED_AS_BEGUN):
            raise ConfigError(
                f"run folder {folder} was begun with {key}={begun}, now it is {now}; a run is resumed with the "
                "values it was begun with: set it back, or take another run.name"
            )


def _refuse_contents(
    spec: RunSpec, differing: Mapping[str, str], values: Mapping[str, tuple[object, object]]
) -> list[str]:
    """Raise ConfigError for contents that have changed, unless run.resume says so; returns what to note of them."""
    notes = []
    for key, difference in differing.items():
        if spec.config.run.resume is Resume.changed and key != "model.path":
            notes.append(f"{key} is not as the run was begun: {difference}")
            continue
        if key in values and _is_in(key, ("objective",)):
            continue  # another value of a setting that may change
        way = "" if key == "model.path" else "go on with it as it is now by run.resume=changed, "
        raise ConfigError(
            f"run folder {spec.run_dir} was begun with another content of {key}: {difference}. Expected the same, "
            f"wherever it is: put it back, {way}or take another run.name"
        )
    return notes
