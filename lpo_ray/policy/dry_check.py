"""One look, before anything is trained, at whether a model's numbers are its own: that they depend on its weights and
on a response's own tokens only.

transformers knows some 170 architectures; packing, the scoring head and what is random in a forward were written for
what most of them have in common. This asks the model itself instead of a list of names.

Legend: a *bundle* is a prompt and its responses (``ScoringItem``); forwards are those of a micro-batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from lpo_ray.errors import ConfigError
from lpo_ray.policy.layout import Layout, lay_out
from lpo_ray.policy.scoring import Scorer
from lpo_ray.policy.weights_proof import as_bundles, largest_difference
from lpo_ray.records import FloatArray, IntArray, ScoringItem, Segment

ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3}
HALF_ROUNDING = 0.5
"""nats, largest difference of a log-prob between two ways of computing it that is still rounding, in full and in half
precision; as in the proof of published weights
"""
REPEATED = 50
"""how many times smaller it is between two forwards of one shape"""
SHORT = (6, (9,))
LONG = (11, (23, 17, 2))
"""lengths of a prompt and of its responses"""


def check_numbers(scorer: Scorer, model: PreTrainedModel) -> None:
    """Check that scores are repeatable, independent of company, and those of the model's own forward.

    With ZeRO-3 a collective: all ranks call it at once. It costs eight forwards over at most 90 tokens. Raises
    ConfigError, naming what would be wrong.
    """
    config = model.config.get_text_config()
    short, long = _bundles(config)
    try:
        alone, again = _scores(scorer, [short]), _scores(scorer, [short])
        beside, far = _scores(scorer, [short, long]), _scores(scorer, [short, long], shift=_positions(config))
        own = [_plainly(scorer, prompt, answer) for prompt, answers in (short, long) for (answer,) in answers]
    except (TypeError, AttributeError, IndexError, KeyError, ValueError) as error:
        raise _refused(model, scorer, f"its forward fails: {type(error).__name__}: {error}") from error
    rounding = ROUNDING.get(model.dtype, HALF_ROUNDING)
    if not all(np.isfinite(row).all() for row in (*alone, *beside, *own)):
        raise ConfigError(
            f"{type(model).__name__} gives log-probs that are not finite; expected numbers: its weights have NaN or "
            "Inf, or its model.dtype is too narrow for it"
        )
    for found, expected, tolerated, what in (
        (again, alone, rounding / REPEATED, f"two forwards of the same tokens{_random_parts(model)}"),
        (far[:1], beside[:1], rounding / REPEATED, f"two forwards beside others at other positions{_rope(config)}"),
        (beside[:1], alone, rounding, "a forward alone and one beside other responses"),
        (beside, own, rounding, "the learner's forward and the model's own"),
    ):
        difference = largest_difference(found, expected)
        if difference > tolerated:
            why = f"log-probs of {what} differ by {difference:.3g}, expected at most {tolerated:.1g}"
            raise _refused(model, scorer, why)


def _bundles(config: PretrainedConfig) -> list[ScoringItem]:
    """Make a short bundle and a long one of random tokens, or shorter ones for a model of few positions."""
    rng = np.random.default_rng(20260507)
    longest = LONG[0] + max(LONG[1])
    share = min(1.0, getattr(config, "max_position_embeddings", longest) / longest)

    def tokens(length: int) -> IntArray:
        return rng.integers(0, config.vocab_size, max(1, int(length * share)), dtype=np.int64)

    return [
        (tokens(prompt), [(Segment.answer(tokens(length)),) for length in lengths]) for prompt, lengths in (SHORT, LONG)
    ]


def _positions(config: PretrainedConfig) -> int:
    """Count the positions by which the last token can be moved and still be one that the model has."""
    longest = LONG[0] + max(LONG[1])
    return max(0, getattr(config, "max_position_embeddings", longest) - longest)


def _scores(scorer: Scorer, bundles: Sequence[ScoringItem], shift: int = 0) -> list[FloatArray]:
    """Compute the log-probs of each response. ``shift``: positions by which all bundles but the first are moved."""
    layout = lay_out(bundles, packed=scorer.packed, share_prompt=scorer.share_prompt)
    if shift:
        layout = _shifted(layout, bundles, shift)
    with torch.no_grad():
        found, _ = scorer.score(layout, 1.0)
    return [row.cpu().numpy() for row in found.float().split(layout.lengths)]


def _shifted(layout: Layout, bundles: Sequence[ScoringItem], shift: int) -> Layout:
    """Move all bundles but the first to later positions. A row or run of tokens is one sequence, so nothing else of a
    forward changes.
    """
    (prompt, responses), *_ = bundles
    positions = layout.position_ids.clone()
    if layout.rows is None:
        positions[len(responses) :] += shift
    else:
        positions[:, len(prompt) + sum(layout.lengths[: len(responses)]) :] += shift
    return dataclasses.replace(layout, position_ids=positions)


def _plainly(scorer: Scorer, prompt: IntArray, answer: Segment) -> FloatArray:
    """Compute the log-probs of one response by the model's own forward over its sequence alone."""
    layout = lay_out(as_bundles([np.concatenate([prompt, answer.token_ids])]), packed=False, share_prompt=False)
    with torch.no_grad():
        return scorer.score_plainly(layout)[len(prompt) - 1 :].cpu().numpy()


def _random_parts(model: PreTrainedModel) -> str:
    """Name what may be random in a forward."""
    values = model.config.to_dict().items()
    named = {n: v for n, v in values if any(part in n for part in ("drop", "jitter", "noise")) and v}
    return f" (its config has {named})" if named else " (a part of it is random)"


def _rope(config: PretrainedConfig) -> str:
    parameters = getattr(config, "rope_parameters", None)
    return f" (its RoPE is {parameters})" if parameters else ""


def _refused(model: PreTrainedModel, scorer: Scorer, why: str) -> ConfigError:
    layout = "packed" if scorer.packed else "padded"
    remedy = (
        "set learner.attention=padded and pipeline.share_prompt=false, if that is what it needs"
        if scorer.packed
        else "this model cannot be trained here"
    )
    return ConfigError(
        f"{type(model).__name__} with learner.attention={layout}: {why}. Expected numbers that depend on the weights "
        f"and a response's own tokens alone; {remedy}"
    )
