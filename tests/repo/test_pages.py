"""Pages for readers: what they name exists, what they show runs, and they stay short enough to be read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lpo_ray.cli.app import cli
from lpo_ray.config.load import load_config
from lpo_ray.config.schema import Inflight, StalePolicy, TaskConfig
from lpo_ray.objective import DIVERGENCES
from lpo_ray.objective.temperature import TEMPERATURES
from lpo_ray.objective.token_clip import TOKEN_CLIPS
from lpo_ray.tasks.table import TASKS, task_named
from lpo_ray.tasks.task import SourceContext
from lpo_ray.verifiers.table import VERIFIERS
from tests.support.pages import ROOT, SECTIONS, exists

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "launch/*.md", "tests/*.md", "tests/benchmarks/*.md", "configs/**/*.md")
    for path in ROOT.glob(pattern)
)
NOW = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""pages about what is, not about what was"""
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
"""pages that are read from beginning to end"""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
SETTING = re.compile(rf"(?<![\w./:-])(?:{'|'.join(SECTIONS)})(?:\.[a-z_]+)+(?![\w/(])")
FILES = {"py", "md", "yaml", "sqlite", "json", "jsonl", "html"}
SOURCE = re.compile(r"[\w./*-]+\.(?:py|md|yaml|sh|sbatch|js|toml|lock)")
OF_A_USER = ("my_*", "mine.yaml", "path/*", "config.yaml")
"""files that pages name and that are not ours: a reader's, and a run's"""
COMMAND = re.compile(r"lpo-ray ([a-z-]+)([^`\n]*)")
LONGEST_SENTENCE, SENTENCE = 30, 22
"""words, at most and as a rule"""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", prose_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def sentences(page: Path) -> Iterator[str]:
    """Sentences of paragraphs and bullets, without links' addresses; an inline code is a word."""
    text = re.sub(r"^(\||#|!\[).*$", "", prose_of(page), flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`\n]+`", "code", text))
    for paragraph in re.split(r"\n\s*\n|\n(?=- |\d+\. )", text):
        yield from filter(None, (part.strip() for part in re.split(r"(?<=[.!?])\s+", paragraph)))


def first_block(page: str, language: str) -> str:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return next(body for found, body in BLOCK.findall(text) if found == language)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    prose = CODE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(other), f"{page.name}: {target}, expected one of {anchors(other)}"


@pytest.mark.parametrize("page", NOW, ids=name_of)
def test_settings_that_are_named_exist(page: Path) -> None:
    for code in CODE.findall(page.read_text(encoding="utf-8")):
        for setting in SETTING.findall(code):
            assert setting.rpartition(".")[2] in FILES or exists(setting), f"{page.name}: {setting}"


@pytest.mark.parametrize("page", NOW, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", prose_of(page)):
        for word in re.split(r"[\s:,=\[\]]+", code):
            if re.fullmatch(r"(?:lpo_ray|actors|tests|configs|docs|launch|docker)/[\w./-]*", word):
                assert (ROOT / word).exists() or list(ROOT.glob(f"{word}*")), f"{page.name}: {word}"
            elif (
                SOURCE.fullmatch(word)
                and not word.startswith(".")
                and not any(fnmatch(word, user) for user in OF_A_USER)
            ):
                assert next(found(word), None), f"{page.name}: {word}"


def found(word: str) -> Iterator[Path]:
    for top in ("", "lpo_ray", "actors", "tests", "configs", "docs", "launch", "docker"):
        yield from (ROOT / top).glob(word if not top else f"**/{word}")


@pytest.mark.parametrize("page", NOW, ids=name_of)
def test_commands_that_are_named_exist(page: Path) -> None:
    for code in CODE.findall(page.read_text(encoding="utf-8")):
        for command, rest in COMMAND.findall(re.sub(r"#.*", "", code)):
            assert command in cli.commands, f"{page.name}: lpo-ray {command}"
            parameters = cli.commands[command].params
            options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
            asked = set(re.findall(r"(?<=\s)-{1,2}[a-z][a-z-]*", rest)) - {"--help"}
            assert asked <= options, f"{page.name}: lpo-ray {command} {asked - options}, expected of {options}"


def test_the_tree_of_the_readme_is_the_tree() -> None:
    tree = next(
        body for _, body in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")) if "actors/\n" in body
    )
    package = ROOT
    for line in tree.splitlines():
        if not line.startswith(" "):
            package = ROOT / line
            assert package.is_dir(), line
            continue
        folder = package / line.split()[0]
        for entry in re.findall(r"(?:^|(?<=\s))(\w+/|\w+\.py)", line):
            assert (package / entry).exists() or (folder / entry).exists(), f"{line.strip()}: {entry}"


@pytest.mark.parametrize(
    ("page", "table"),
    [
        ("algorithms.md", DIVERGENCES),
        ("algorithms.md", TEMPERATURES),
        ("algorithms.md", TOKEN_CLIPS),
        ("verifiers.md", VERIFIERS),
        ("verifiers.md", {name if not task.takes_variant else f"{name}:NAME": task for name, task in TASKS.items()}),
        ("speed.md", {mode.value: mode for mode in Inflight}),
        ("speed.md", {policy.value: policy for policy in StalePolicy}),
    ],
)
def test_every_row_of_a_table_is_on_its_page(page: str, table: Mapping[str, object]) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert [name for name in table if not re.search(rf"[`=]{name}\b", text)] == []


def test_every_command_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in GUIDES)
    assert [name for name in cli.commands if f"lpo-ray {name}" not in text and f"`{name}`" not in text] == []


def test_the_readme_is_one_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130 and len(text.split()) <= 1400


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_pages_are_short_and_their_sentences_too(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    assert [line for line in text.splitlines() if len(line) > 140 and not line.startswith("|")] == []
    lengths = {sentence: len(sentence.split()) for sentence in sentences(page)}
    assert [sentence for sentence, words in lengths.items() if words > LONGEST_SENTENCE] == []
    assert sum(words > SENTENCE for words in lengths.values()) <= len(lengths) / 10
    assert sum(lengths.values()) / len(lengths) <= 16


def test_the_configuration_that_is_shown_is_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(first_block("your_data.md", "yaml"), encoding="utf-8")
    config = load_config(tmp_path / "mine.yaml")
    assert config.rollout.num_workers * config.rollout.gpus_per_worker + config.learner.world_size == 8


def test_the_task_that_is_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_task.py").write_text(first_block("own_task.md", "python"), encoding="utf-8")
    encoder = SimpleNamespace(
        max_tokens=64, encode=lambda text: np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
    )
    task = task_named("my_task.py:task")
    source = task.make(TaskConfig(options={"largest": 20}), SourceContext(0, str(task.verifier), encoder))  # pyright: ignore
    trained, held = [source.train(index) for index in range(50)], source.heldout(50)
    assert bytes(trained[7].token_ids.astype(np.uint8)).decode().endswith("=")
    assert trained[7].answer == source.train(7).answer
    assert not {prompt.token_ids.tobytes() for prompt in trained} & {prompt.token_ids.tobytes() for prompt in held}


def test_a_setting_that_does_not_exist_is_found() -> None:
    assert exists("learner.deepspeed.zero_optimization") and exists("verifier.http.reply_schema")
    assert not exists("learner.lr_floor") and not exists("verifier.http.nothing")
    assert SETTING.findall("`objective.token_clip.kind=clamp`") == ["objective.token_clip.kind"]
