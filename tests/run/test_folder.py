"""The run folder: created once, resumed as it was begun, and what a dry run says of it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from lpo_ray.config import dump_config, load_config
from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError, RunBusy
from lpo_ray.records import Prompt
from lpo_ray.run import contents
from lpo_ray.run.day import dated
from lpo_ray.run.folder import LOCK, RunFolder, Start, check_prompts, held, look, outlook
from lpo_ray.run.spec import RunSpec, make_spec
from lpo_ray.tasks.prompt_form import form_of
from lpo_ray.training.ledger import Ledger

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def config_of(*overrides: str) -> Config:
    return load_config(QUICKSTART, overrides)


def spec_of(folder: Path, *overrides: str) -> RunSpec:
    return make_spec(config_of(f"run.dir={folder.parent}", f"run.name={folder.name}", *overrides))


def begun(folder: Path, *, committed: int, saved: int) -> None:
    """What a run that was killed leaves, as far as a dry run looks."""
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(dated(config_of(), None)))
    ledger = Ledger(folder / "ledger.sqlite")
    for step in range(1, committed + 1):
        ledger._db.execute("INSERT INTO commits (step, digest, committed_at) VALUES (?, 'd', 1.0)", (step,))
    ledger.close()
    if saved:
        checkpoint = folder / "checkpoints" / f"step_{saved:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text("{}")


def test_an_existing_run_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"continue it with run.resume=auto"):
        look(spec_of(tmp_path))
    look(spec_of(tmp_path, "run.resume=auto"))


def test_a_run_is_resumed_with_what_it_was_begun_with(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun(folder, committed=0, saved=0)
    look(spec_of(folder, "run.resume=auto", "run.steps=99", "learner.lr=1e-5", "learner.world_size=1"))
    with pytest.raises(ConfigError, match=r"was begun with run.seed=0, now it is 1"):
        look(spec_of(folder, "run.resume=auto", "run.seed=1"))


def test_prompts_are_told_the_day_on_which_the_run_was_begun(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert spec_of(folder).config.task.date == date.today().isoformat()
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(dated(config_of(), "2026-01-02")))
    resumed = spec_of(folder, "run.resume=auto")
    look(resumed)
    assert resumed.config.task.date == "2026-01-02"
    assert form_of(resumed.config.task).style.date.strftime("%d %b %Y") == "02 Jan 2026"
    with pytest.raises(ConfigError, match=r"task.date=.?2026-01-02.?, now it is .?2026-01-03"):
        look(spec_of(folder, "run.resume=auto", "task.date=2026-01-03"))


def test_a_run_that_learns_otherwise_is_known(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert look(spec_of(folder, "learner.lr=1")).recompute
    begun(folder, committed=0, saved=0)
    assert look(spec_of(folder, "run.resume=auto", "telemetry.samples_every=3")).recompute
    assert not look(spec_of(folder, "run.resume=auto", "learner.lr=1e-5")).recompute


def test_keys_of_an_earlier_version_are_not_a_change(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun(folder, committed=0, saved=0)
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("silence_seconds", "deadline_seconds"))
    assert look(spec_of(folder, "run.resume=auto")).recompute


def test_a_dry_run_says_what_would_become_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert outlook(spec_of(folder)) == "begin a new run"
    begun(folder, committed=8, saved=5)
    assert outlook(spec_of(folder)).startswith(f"refuse: run folder {folder} exists and is not empty; take another")
    assert (
        outlook(spec_of(folder, "run.resume=auto"))
        == "resume after step 8 of 64, computing steps 6 to 8 again from the groups that made them"
    )
    # another learning rate would make other steps: those since the checkpoint are trained anew
    assert outlook(spec_of(folder, "run.resume=auto", "learner.lr=1e-5")) == "resume after step 5 of 64"
    assert outlook(spec_of(folder, "run.resume=auto", "run.seed=1")).startswith("refuse: ")


@dataclasses.dataclass
class Pointing:
    """A run whose configuration points to a model, data, a verifier and a reference, all of which are files."""

    root: Path
    overrides: dict[str, str]

    def spec(self, *more: str) -> RunSpec:
        given = [f"{key}={value}" for key, value in self.overrides.items()]
        return spec_of(self.root / "runs" / "pointing", "run.resume=auto", *given, *more)

    def start(self, *more: str) -> Start:
        return look(self.spec(*more))

    def move(self, key: str, name: str) -> None:
        """Copy what ``key`` points to, with other times, and point there."""
        before, after = Path(self.overrides[key].partition(":")[0]), self.root / name
        (shutil.copytree if before.is_dir() else shutil.copyfile)(before, after)
        for path in (after, *after.rglob("*")):
            os.utime(path, (1e9, 1e9))
        self.overrides[key] = self.overrides[key].replace(str(before), str(after))


@pytest.fixture
def pointing(tmp_path: Path, tiny_policy: Path) -> Pointing:
    for name, end in (("train.jsonl", ":"), ("heldout.jsonl", "=")):
        rows = [json.dumps({"prompt": f"{number}{end}", "answer": str(number)}) for number in range(30)]
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    (tmp_path / "judge.py").write_text("def judge(response: str, answer: str) -> float:\n    return 1.0\n")
    for name in ("model", "reference"):
        shutil.copytree(tiny_policy, tmp_path / name)
    found = Pointing(
        tmp_path,
        {
            "model.path": str(tmp_path / "model"),
            "objective.reference_path": str(tmp_path / "reference"),
            "objective.reference_kl": "0.1",
            "task.name": "dataset",
            "task.path": str(tmp_path / "train.jsonl"),
            "task.heldout_path": str(tmp_path / "heldout.jsonl"),
            "task.verifier": f"{tmp_path / 'judge.py'}:judge",
            "evaluation.num_prompts": "4",
            "learner.world_size": "1",
        },
    )
    with held(found.spec(), lambda text: None) as folder:
        assert not folder.start.is_begun
        folder.record()
    return found


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text() if path.exists() else ""))


NEW_ROW = '{"prompt": "a", "answer": "b"}\n'
CHANGES: dict[str, tuple[str, str, Callable[[str], str]]] = {
    "a row in front": ("task.path", "train.jsonl", lambda text: NEW_ROW + text),
    "a row at the end": ("task.path", "train.jsonl", lambda text: text + NEW_ROW),
    "an answer": ("task.path", "train.jsonl", lambda text: text.replace('"7"', '"8"')),
    "held-out prompts": ("task.heldout_path", "heldout.jsonl", lambda text: text.replace('"7"', '"8"')),
    "the verifier": ("task.verifier[0]", "judge.py", lambda text: text.replace("1.0", "0.0")),
    "the reference": ("objective.reference_path", "reference/config.json", lambda text: f"{text} "),
    "the model": ("model.path", "model/config.json", lambda text: f"{text} "),
    "the chat template": ("model.path", "model/chat_template.jinja", lambda text: "{{ messages }}"),
}


def change_of(name: str, root: Path) -> str:
    """Make the change; returns the key of what it is a change of."""
    key, file, change = CHANGES[name]
    rewrite(root / file, change)
    return key


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_another_content_is_refused_by_name(change: str, pointing: Pointing) -> None:
    key = change_of(change, pointing.root)
    with pytest.raises(ConfigError, match="was begun with another content of") as caught:
        pointing.start()
    said = str(caught.value)
    assert f"another content of {key}: {pointing.root}/" in said
    assert ("run.resume=changed" in said) == (key != "model.path")


@pytest.mark.parametrize("change", ["an answer", "the verifier", "the reference", "the model"])
def test_all_but_the_model_may_change_where_the_user_says_so(change: str, pointing: Pointing) -> None:
    key = change_of(change, pointing.root)
    if key == "model.path":
        with pytest.raises(ConfigError, match=r"another content of model\.path"):
            pointing.start("run.resume=changed")
        return
    start = pointing.start("run.resume=changed")
    assert start.changed == {key}
    assert start.recompute == (key != "objective.reference_path")
    assert start.notes[0].startswith(f"{key} is not as the run was begun: {pointing.root}/")
    with held(pointing.spec("run.resume=changed"), lambda text: None) as folder:
        folder.record()
    assert pointing.start().changed == frozenset()  # from now on that is what the run has


def test_what_has_moved_is_the_same(pointing: Pointing) -> None:
    for key, name in {
        "model.path": "moved", "task.path": "elsewhere.jsonl", "task.heldout_path": "other.jsonl",
        "objective.reference_path": "frozen",
    }.items():  # fmt: skip
        pointing.move(key, name)
    (pointing.root / "rewards").mkdir()
    pointing.move("task.verifier", "rewards/judge.py")
    (pointing.root / "moved" / "README.md").write_text("nothing that decides anything")
    (pointing.root / "moved" / ".gitattributes").write_text("neither does this")
    start = pointing.start()
    assert start.recompute
    assert start.notes == ()


@pytest.mark.parametrize("form", ["{0}/part-1.jsonl,{0}/part-2.jsonl", "{0}/part-*.jsonl", "{0}"])
def test_each_of_several_data_files_is_compared(form: str, pointing: Pointing) -> None:
    shards = pointing.root / "shards"
    shards.mkdir()
    for number in (1, 2):
        shutil.copy(pointing.root / "train.jsonl", shards / f"part-{number}.jsonl")
    pointing.overrides |= {"task.path": form.format(shards), "run.name": "several"}
    with held(pointing.spec(), lambda text: None) as folder:
        folder.record()
    assert pointing.start().is_begun
    rewrite(shards / "part-2.jsonl", lambda text: NEW_ROW + text)
    with pytest.raises(ConfigError, match=r"another content of task.path: .*part-2.jsonl has changed"):
        pointing.start()


def test_the_chat_template_is_compared_by_its_content(pointing: Pointing) -> None:
    template = pointing.root / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    pointing.overrides |= {"task.chat_template": str(template), "task.template": "chat", "run.name": "chat"}
    with held(pointing.spec(), lambda text: None) as folder:
        folder.record()
    pointing.move("task.chat_template", "moved.jinja")
    assert pointing.start().notes == ()
    rewrite(pointing.root / "moved.jinja", lambda text: text + "!")
    with pytest.raises(ConfigError, match=r"another content of task.chat_template: .*moved.jinja has changed"):
        pointing.start()


HELPER = "def helper(text: str) -> str:\n    return text\n"
HOST = "from lpo_ray.agents.tools import ToolEnvironment\n\nclass Host(ToolEnvironment):\n    pass\n"


@pytest.mark.parametrize(("key", "file"), [("task.environment", "host.py"), ("task.tools[1]", "helper.py")])
def test_environment_and_tools_are_compared_by_their_content(key: str, file: str, pointing: Pointing) -> None:
    (pointing.root / "helper.py").write_text(HELPER)
    (pointing.root / "host.py").write_text(HOST)

    def names(folder: Path) -> dict[str, str]:
        tools = f"[calculator, {folder / 'helper.py'}:helper]"
        return {"task.environment": f"{folder / 'host.py'}:Host", "task.tools": tools}

    pointing.overrides |= {"run.name": "turns", **names(pointing.root)}
    with held(pointing.spec(), lambda text: None) as folder:
        folder.record()
    moved = pointing.root / "moved"
    moved.mkdir()
    for name in ("helper.py", "host.py"):
        (pointing.root / name).rename(moved / name)
    pointing.overrides |= names(moved)
    assert pointing.start().notes == ()
    rewrite(moved / file, lambda text: text + "\n")
    with pytest.raises(ConfigError, match=rf"another content of {re.escape(key)}: .*{file} has changed"):
        pointing.start()
    assert pointing.start("run.resume=changed").changed == {key}


def test_a_file_that_was_renamed_is_another_verifier(pointing: Pointing) -> None:
    pointing.move("task.verifier", "other.py")
    with pytest.raises(ConfigError, match=r"begun with task.verifier=.*judge.py:judge, now it is .*other.py:judge"):
        pointing.start()


def test_another_reference_by_another_name_is_a_setting_that_may_change(pointing: Pointing) -> None:
    pointing.move("objective.reference_path", "later")
    rewrite(pointing.root / "later/config.json", lambda text: text + " ")
    start = pointing.start()
    assert not start.recompute
    assert start.notes == ()


def test_files_that_have_not_changed_are_not_read_again(pointing: Pointing, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: object, **named: object) -> None:
        raise AssertionError("a large model would take minutes")

    monkeypatch.setattr("lpo_ray.common.file_digests.blake3", read)
    assert pointing.start().is_begun


def test_a_folder_of_an_older_version_is_resumed_by_its_paths_with_a_note(pointing: Pointing) -> None:
    folder = pointing.root / "runs" / "pointing"
    (folder / contents.FILE).unlink()
    assert "was not recorded when it was begun" in pointing.start().notes[0]
    rewrite(folder / "config.yaml", lambda text: "".join(
        line for line in text.splitlines(keepends=True) if "ignore_me" not in line and "template:" not in line
    ))  # fmt: skip
    assert pointing.start().is_begun  # a key that did not exist then has its default
    pointing.move("task.path", "elsewhere.jsonl")
    with pytest.raises(ConfigError, match=r"begun with task.path=.*train.jsonl, now it is .*elsewhere.jsonl"):
        pointing.start()


def test_a_record_that_is_damaged_is_named(pointing: Pointing) -> None:
    (pointing.root / "runs" / "pointing" / contents.FILE).write_text("{half")
    with pytest.raises(ConfigError, match=r"contents.json is damaged .* Remove it"):
        pointing.start()


def test_checkpoints_are_of_one_kind_of_cluster(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun(folder, committed=3, saved=3)
    with pytest.raises(ConfigError, match=r"begun with cluster\.kind=ray, now it is inprocess"):
        look(spec_of(folder, "run.resume=auto", "cluster.kind=inprocess"))


def test_the_key_that_differs_is_named_and_not_its_section(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun(folder, committed=3, saved=3)
    with pytest.raises(ConfigError, match=r"begun with sampling.top_p=1.0, now it is 0.5;"):
        look(spec_of(folder, "run.resume=auto", "sampling.top_p=0.5"))
    with pytest.raises(ConfigError, match=r"begun with rollout.max_model_len=None, now it is 60;"):  # it keeps others
        look(spec_of(folder, "run.resume=auto", "rollout.max_model_len=60"))
    look(spec_of(folder, "run.resume=auto", "rollout.engine_args={block_size: 64}", "rollout.enforce_eager=true"))


@pytest.mark.parametrize("left", ["log.jsonl", "status.json", "summary.json", "report.html", LOCK, ".partial-x.json"])
def test_what_a_refused_start_leaves_does_not_block_the_name(left: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    Ledger(folder / "ledger.sqlite").close()
    (folder / left).write_text("{}")
    assert outlook(spec_of(folder)).startswith(("begin", "resume after step 0"))
    ledger = Ledger(folder / "ledger.sqlite")
    ledger.issue(0, "train-00000000", 1.0)
    ledger.close()
    assert outlook(spec_of(folder)).startswith("refuse: ")


def test_two_drivers_of_one_folder(tmp_path: Path) -> None:
    spec = spec_of(tmp_path / "run", "run.resume=auto")
    with held(spec, lambda text: None) as first:
        first.check()
        assert first.is_ours
        with pytest.raises(
            RunBusy, match=rf"is being driven: process {os.getpid()} on .* `lpo-ray stop {tmp_path}/run`"
        ):
            hold(spec)
    hold(spec)


def hold(spec: RunSpec) -> RunFolder:
    with held(spec, lambda text: None) as folder:
        return folder


class Renumbered:
    """Prompts whose rows have moved by ``shift``."""

    def __init__(self, shift: int) -> None:
        self.shift = shift

    def train(self, index: int) -> Prompt:
        return Prompt(f"train-{index:08d}-row-{index + self.shift}", np.array([1]), "", "exact")

    def heldout(self, count: int) -> list[Prompt]:
        return []


def test_changed_data_must_have_the_prompts_that_were_issued(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for index in range(1000):
        ledger.issue(index, f"train-{index:08d}-row-{index}", 1.0)
    ledger.close()
    check_prompts(tmp_path, Renumbered(0))
    with pytest.raises(ConfigError, match="prompt 0 of the changed data is train-00000000-row-1, the run in"):
        check_prompts(tmp_path, Renumbered(1))
