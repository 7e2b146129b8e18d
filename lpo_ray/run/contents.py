"""Contents of what a configuration points to: model, data, verifier, environment, tools, reference. A name is no
identity: files change.

``contents.json`` of a run's folder has the digest of every file as the run was begun. A resume compares contents, so
the files may have moved. Files whose size and time are as recorded are not read again.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from lpo_ray.common.file_digests import FileDigest, digests, files_of
from lpo_ray.common.files import write_json
from lpo_ray.common.plugins import plugin_file
from lpo_ray.errors import ConfigError, DataError
from lpo_ray.policy.loading import identity
from lpo_ray.run.spec import RunSpec
from lpo_ray.tasks.sources import files as data_sets
from lpo_ray.tasks.table import TASKS
from lpo_ray.verifiers.calling.weighted_sum import terms

FILE = "contents.json"
DATA_SETS = ("task.path", "task.heldout_path")
SHOWN = 3
"""files that a message names"""


@dataclass(frozen=True, slots=True)
class Content:
    """Content of what one key of the configuration points to."""

    path: str
    files: Mapping[str, FileDigest]
    """by the name in the folder, without what is hidden; of several data files number and name; "" for a file alone"""
    version: str = ""
    """of what is no file here: a model's name on a hub and its commit"""

    def difference(self, now: Content) -> str | None:
        """Say which files differ. None: the content is the same, wherever it is."""
        if self.version != now.version:
            return f"it was {self.version or self.path}, now it is {now.version or now.path}"
        names = [
            name
            for name in sorted({*self.files, *now.files})
            if _digest(self.files.get(name)) != _digest(now.files.get(name))
        ]
        if not names:
            return None
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return "; ".join(_changed(name, self, now) for name in names[:SHOWN]) + more


def pointers(spec: RunSpec) -> dict[str, str]:
    """List what the configuration points to: key -> path or name. The tiny base policy is not there: its recipe is in
    the configuration.
    """
    config = spec.config
    found = {
        "model.path": config.model.path,
        "model.lora.path": config.model.lora.path,
        "task.path": config.task.path,
        "task.heldout_path": config.task.heldout_path,
        "task.chat_template": config.task.chat_template,
        "objective.reference_path": config.objective.reference_path if config.objective.reference_kl else None,
    }
    return {key: path for key, path in found.items() if path is not None} | {
        key: str(file) for key, name in _plugins(spec).items() if (file := plugin_file(name)) is not None
    }


def contents_of(spec: RunSpec, known: Mapping[str, Content]) -> dict[str, Content]:
    """Digest what the configuration points to, but for files whose size and time are as ``known``. Data on a hub is not
    there: its name is all there is. Raises OSError.
    """
    found = {}
    for key, path in pointers(spec).items():
        files = _files(key, path)
        if files:
            before = known[key].files if key in known else {}
            found[key] = Content(path, dict(digests(files, before)))
        elif key in ("model.path", "objective.reference_path"):
            found[key] = Content(path, {}, identity(path, trust_remote_code=spec.config.model.trust_remote_code))
    return found


def read_contents(run_dir: Path) -> dict[str, Content] | None:
    """Read contents.json of a run's folder. None: an older version began the run. Raises ConfigError."""
    path = run_dir / FILE
    if not path.is_file():
        return None
    try:
        return {
            key: Content(
                value["path"], {name: FileDigest(*fields) for name, fields in value["files"].items()}, value["version"]
            )
            for key, value in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged ({type(error).__name__}: {error}); expected it as it was written. Remove it to go on "
            "without a comparison of model and data"
        ) from error


def write_contents(run_dir: Path, contents: Mapping[str, Content]) -> None:
    """Write contents.json of a run's folder."""
    write_json(
        run_dir / FILE,
        {
            key: {
                "path": content.path,
                "version": content.version,
                "files": {name: astuple(digest) for name, digest in content.files.items()},
            }
            for key, content in contents.items()
        },
    )


def without_folders(names: str) -> str:
    """Write a function's name, or a sum of verifiers, with its files' own names: the same wherever they are."""
    return " ".join(_without_folder(part) for part in names.split())


def _plugins(spec: RunSpec) -> dict[str, str]:
    """Functions and classes of the user's that decide prompts, rewards or steps: key -> name."""
    config = spec.config
    task = config.task
    found = {f"task.verifier[{at}]": term.name for at, term in enumerate(terms(spec.verifier))}
    found |= {f"task.tools[{at}]": name for at, name in enumerate(task.tools)}
    if task.environment is not None:
        found["task.environment"] = task.environment
    if isinstance(task.agent, str):
        found["task.agent"] = task.agent
    if task.name.partition(":")[0] not in TASKS:
        found["task.name"] = task.name
    return found | {
        "objective.divergence": config.objective.divergence,
        "objective.target_temperature": config.objective.target_temperature,
        "objective.token_clip.kind": config.objective.token_clip.kind,
    }


def _without_folder(name: str) -> str:
    module, colon, function = name.rpartition(":")
    return f"{Path(module).name}:{function}" if colon and module.endswith(".py") else name


def _files(key: str, path: str) -> dict[str, Path]:
    """List the files of one key by name; none of what is on a hub, or is not there."""
    alone = Path(path.partition("#")[0])
    if key not in DATA_SETS or alone.exists():
        return files_of(alone)
    several = None
    with contextlib.suppress(DataError):  # whoever reads it says so
        several = data_sets.files_of(path)
    return {f"{number:05d}-{Path(file).name}": Path(file) for number, file in enumerate(several or (), start=1)}


def _digest(found: FileDigest | None) -> str:
    return "" if found is None else found.digest


def _changed(name: str, begun: Content, now: Content) -> str:
    before, after = begun.files.get(name), now.files.get(name)
    path = str(Path((begun if after is None else now).path, name)) if name else now.path
    if after is None:
        return f"{path} is missing"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(after.changed / 1e9))
    if before is None:
        return f"{path} is new ({after.size} bytes, of {when})"
    return f"{path} has changed ({after.size} bytes, of {when}; it had {before.size})"
