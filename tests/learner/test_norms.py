from __future__ import annotations

import pytest

from lpo_ray.learner.norms import kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.self_attn.q_proj.weight", "attention"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("model.layers.0.mlp.experts.3.up_proj.weight", "mlp"),
        ("lm_head.weight", "head"),
        ("score.bias", "other"),
    ],
)
def test_kinds_of_parameters(name: str, kind: str) -> None:
    assert kind_of(name) == kind
