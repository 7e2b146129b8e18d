"""vLLM reads what is written, and answers as transformers does with the folder that it came from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PretrainedConfig, Qwen3Config

from lpo_ray.policy.loading import load_policy
from lpo_ray.policy.saving import save_model
from lpo_ray.policy.tokenizer import Tokenizer
from tests.support.model_folders import SIZES, llama, write_model

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]
WIDE = {**SIZES, "hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 512}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 2e3, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
KINDS = {
    "theta": Qwen3Config(**WIDE, rope_parameters={"rope_type": "default", "rope_theta": 50.0}),
    "llama3": llama(**WIDE, rope_parameters=LLAMA3),
}
READER = """
import asyncio, json, sys
import numpy as np
from actors.doctor.probes import _decode, _logprobs
out, source = sys.argv[1:]
prompt = np.random.default_rng(0).integers(4, 100, 60)
token_ids, served = asyncio.run(_decode(out, prompt))
expected = _logprobs(source, [*prompt.tolist(), *token_ids])[-len(token_ids) :]
print(json.dumps([served, expected]))
"""


@pytest.mark.parametrize("name", KINDS)
def test_vllm_answers_as_the_source_does(tmp_path: Path, name: str) -> None:
    config: PretrainedConfig = KINDS[name]
    source, out = write_model(tmp_path / "source", config), tmp_path / "out"
    save_model(load_policy(str(source), "float32"), out)
    Tokenizer.load(str(source)).save(out)
    command = [sys.executable, "-c", READER, str(out), str(source)]
    reader = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert reader.returncode == 0, reader.stderr
    served, expected = json.loads(reader.stdout.splitlines()[-1])
    assert served == pytest.approx(expected, abs=1e-3)
