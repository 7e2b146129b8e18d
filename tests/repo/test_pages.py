"""Pages for readers: no link leads nowhere, no setting or command is named that does not exist."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from lpo_ray.config.schema import Config
from lpo_ray.objective import DIVERGENCES
from lpo_ray.objective.temperature import TEMPERATURES
from lpo_ray.objective.token_clip import TOKEN_CLIPS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "launch/*.md", "tests/*.md", "tests/benchmarks/*.md", "configs/**/*.md")
    for path in ROOT.glob(pattern)
)
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
SECTIONS = get_type_hints(Config)
SETTING = re.compile(rf"(?<![\w./:-])(?:{'|'.join(SECTIONS)})(?:\.[a-z_]+)+(?![\w/(])")
FILES = {"py", "md", "yaml", "sqlite", "json", "jsonl", "html"}


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def exists(setting: str) -> bool:
    """Whether ``section.key`` is one; what follows a key that holds no section of ours is the library's."""
    holder: object = Config
    for name in setting.split("."):
        if not (isinstance(holder, type) and is_dataclass(holder)):
            return True
        if name not in {field.name for field in fields(holder)}:
            return False
        holder = get_type_hints(holder)[name]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    prose = CODE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(other), f"{page.name}: {target}, expected one of {anchors(other)}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_settings_that_are_named_exist(page: Path) -> None:
    for code in CODE.findall(page.read_text(encoding="utf-8")):
        for setting in SETTING.findall(code):
            assert setting.rpartition(".")[2] in FILES or exists(setting), f"{page.name}: {setting}"


@pytest.mark.parametrize("table", [DIVERGENCES, TEMPERATURES, TOKEN_CLIPS])
def test_the_guide_has_every_row_of_the_grid(table: dict[str, object]) -> None:
    guide = (ROOT / "GUIDE.md").read_text(encoding="utf-8")
    assert [name for name in table if f"`{name}`" not in guide] == []


def test_a_setting_that_does_not_exist_is_found() -> None:
    assert exists("learner.zero.offload_optimizer") and exists("verifier.http.reply_schema")
    assert not exists("learner.lr_floor") and not exists("verifier.http.nothing")
    assert SETTING.findall("`objective.token_clip.kind=clamp`") == ["objective.token_clip.kind"]
