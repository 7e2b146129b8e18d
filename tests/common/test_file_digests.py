"""Which files decide what a model or data set is: one answer for a resume and for an evaluation."""

from __future__ import annotations

from pathlib import Path

from lpo_ray.common.file_digests import files_of
from lpo_ray.policy.loading import identity


def test_pages_and_what_is_hidden_decide_nothing(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    before = identity(str(tmp_path))
    for name in ("README.md", ".gitattributes", ".cache/huggingface/download/config.json.metadata", ".git/HEAD"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("of a download")
    assert list(files_of(tmp_path)) == ["config.json", "model.safetensors"]
    assert identity(str(tmp_path)) == before
    (tmp_path / "modeling.py").write_text("")
    assert identity(str(tmp_path)) != before
    hidden = tmp_path / ".models" / "one"
    hidden.mkdir(parents=True)
    (hidden / "config.json").write_text("{}")
    assert list(files_of(hidden)) == ["config.json"], "a folder that is hidden itself is not"
