"""Published names of points of the grid: which algorithm a configuration is."""

from __future__ import annotations

POLICY_GRADIENTS = {
    "group_std": "GRPO",
    "one": "Dr.GRPO",
    "group_mean": "MaxRL",
    "batch_std": "REINFORCE++ with baseline",
}
"""objective.target_temperature -> the method whose first-order projection has it"""
PROJECTIONS = {
    "forward_kl": "LPO, forward KL",
    "reverse_kl": "LPO, reverse KL",
    "jensen_shannon": "Jensen-Shannon projection onto LPO's target, no published name",
    "first_order_beta": "first-order projection with forward KL's weights of prompts, a control with no published name",
    "pointwise": "weighted likelihood, the ablation of LPO's paper",
}
"""objective.divergence -> its name, where the target's temperature does not make it"""
LPO_CLIPS = ("clamp", "one_sided")
"""rows of objective.token_clip.kind that LPO's paper can be read as"""


def algorithm_name(
    divergence: str,
    target_temperature: str | float,
    token_clip: str = "clamp",
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    length_norm: str = "mean",
    temperature_scale: float = 1.0,
) -> str:
    """Name the algorithm that a point of the grid is, and say where it differs from the published one."""
    temperature = _temperature(target_temperature, temperature_scale)
    method = POLICY_GRADIENTS.get(target_temperature) if isinstance(target_temperature, str) else None
    if divergence == "first_order":
        if method is None or temperature_scale != 1:
            return f"first-order projection onto the target of {temperature}, no published name"
        if token_clip != "ppo_ratio":
            method += f", with token clip {token_clip} instead of ppo_ratio"
        elif clip_high > clip_low and target_temperature == "group_std":
            method += " with DAPO's higher clip"
        published = "sum" if target_temperature == "one" else "mean"  # Dr.GRPO is GRPO without 1/|y|
        return (
            method
            if length_norm == published
            else f"{method}, with {'summed' if length_norm == 'sum' else 'mean'} log-ratios"
        )
    if divergence not in PROJECTIONS:
        return f"projection {divergence} onto the target of {temperature}, no published name"
    is_tpo = (divergence, target_temperature, token_clip, length_norm) == ("forward_kl", "group_std", "none", "sum")
    if is_tpo and temperature_scale == 1:
        return "TPO"
    name = f"{PROJECTIONS[divergence]}; {temperature}"
    if divergence in ("forward_kl", "reverse_kl"):
        name += "" if token_clip in LPO_CLIPS else f", with token clip {token_clip}"
        name += "" if length_norm == "mean" else ", with summed log-ratios"
    return name


def _temperature(rule: str | float, scale: float) -> str:
    """Name a target temperature, and whose it is."""
    times = "" if scale == 1 else f" times {scale:g}"
    if not isinstance(rule, str):
        return f"tau {rule * scale:g}"
    whose = f" ({POLICY_GRADIENTS[rule]}'s)" if rule in POLICY_GRADIENTS and not times else ""
    return f"tau {rule}{times}{whose}"
