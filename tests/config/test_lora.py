"""Adapters that PEFT or vLLM does not have, or that the learner's numbers forbid, are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpo_ray.config import load_config
from lpo_ray.config.lora import adapter_settings
from lpo_ray.errors import ConfigError
from lpo_ray.policy.lora import AdapterSettings

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def test_without_a_rank_all_weights_are_trained() -> None:
    assert adapter_settings(load_config(QUICKSTART)) is None
    assert adapter_settings(load_config(QUICKSTART, ["model.lora={rank: 8}", "model.lora.rank=null"])) is None


def test_a_rank_makes_an_adapter_on_every_linear_layer() -> None:
    found = adapter_settings(load_config(QUICKSTART, ["model.lora.rank=8", "run.seed=5"]))
    assert found == AdapterSettings(8, 32, ("all-linear",), rslora=False, seed=5, path=None)
    found = adapter_settings(load_config(QUICKSTART, ["model.lora={rank: 4, targets: [q_proj, v_proj], rslora: true}"]))
    assert found is not None and found.targets == ("q_proj", "v_proj") and found.rslora


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.lora.rank=513", "a whole number in [1, 512]"),
        ("model.lora.dropout=0.1", "log-probs of equal weights differ"),
        ("model.lora.modules_to_save=[embed_tokens]", "vLLM serves no module that is trained"),
        ("model.lora.targets=[]", "names of linear layers"),
        ("model.lora.targets=[q_proj, q_proj]", "each name once"),
        ("model.lora.targets=[q_proj, all-linear]", "all-linear alone"),
        ("rollout.engine_args={quantization: fp8_per_tensor}", "QLoRA"),
    ],
)
def test_what_cannot_be_meant_is_refused(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(QUICKSTART, ["model.lora.rank=8", override])
    assert says in str(refused.value)


def test_a_folder_needs_its_rank() -> None:
    with pytest.raises(ConfigError, match=r"model\.lora\.path is 'a' without model\.lora\.rank"):
        load_config(QUICKSTART, ["model.lora.path=a"])
