"""Charts that the report and the viewer draw: which metrics stand together in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""colours of Okabe and Ito, which colour-blind readers can tell apart"""


@dataclass(frozen=True, slots=True)
class Chart:
    """Figure of metrics over steps. ``stacked`` draws shares of their sum."""

    title: str
    unit: str
    series: Mapping[str, str]
    """metric -> label"""
    stacked: bool = False
    about: str = ""
    """its meaning, in a line"""
    only_with: str = ""
    """metric without which a run has no such figure"""


def charts_of(rows: Sequence[Mapping[str, object]]) -> list[Chart]:
    """List the charts of a run whose steps measured ``rows``."""
    return [chart for chart in CHARTS if not chart.only_with or any(chart.only_with in row for row in rows)]


CHARTS = (
    Chart(
        "Reward", "per response", {"reward": "mean reward", "pass_rate": "pass rate"},
        about="Of the responses that were trained on: sampled by the policy, on training prompts.",
    ),
    Chart(
        "Pass@k on held-out prompts", "probability", {},
        about="Unbiased over the samples of each prompt; the band is a 95 % bootstrap interval over prompts.",
    ),
    Chart(
        "Entropy", "nats", {"token_entropy": "per token", "target_entropy": "H(w*)", "policy_entropy": "H(P)"},
        about="H(w*) far below H(P): the target asks for few responses. Per token near 0: nothing is explored.",
    ),
    Chart(
        "Did P move to w*?", "nats", {"gap_before": "KL(w*||P) before the step", "gap_after": "after it"},
        about="The target's distance from the policy around a step's updates, on groups scored again after them.",
    ),
    Chart(
        "Gain: promised, bounded, realised", "reward",
        {"measured_predicted_gain": "predicted: tau Jeffreys", "measured_gain": "realised",
         "measured_gain_bound": "Theorem 2's bound"},
        about="Expected reward on the sampled responses; realised is at least predicted - 2 Rmax TV(P, w*).",
    ),
    Chart(
        "Projection gap at each update", "nats",
        {"kl_target_policy": "KL(w*||P)", "kl_policy_target": "KL(P||w*)"},
        about="Before a group's own update. KL(w*||P) rises where the policy misses what the target wants.",
    ),
    Chart(
        "Effective K", "responses",
        {"target_effective_size": "of the target, 1 / sum w*^2",
         "effective_sample_size": "of the anchor, 1 / sum P_t^2",
         "effective_sample_size_min": "smallest of the anchor"},
        about="How many of the K responses carry the weight. Few in the anchor: the data is stale.",
    ),
    Chart(
        "Gradient norm", "before clipping", {"gradient_norm": "gradient norm"},
        about="A spike that is not in the reward is a few groups with large coefficients.",
    ),
    Chart(
        "Update over weights", "ratio of norms",
        {f"update_ratio_{kind}": kind for kind in ("embedding", "attention", "mlp", "norm", "head")},
        about="About 1e-3 is usual; a part that is far from the others learns at another speed.",
    ),
    Chart(
        "Fractions", "of groups or tokens",
        {"equal_reward_fraction": "equal-reward groups", "clip_fraction": "clipped tokens",
         "clip_mass": "clipped coefficient mass", "truncated_fraction": "truncated responses"},
        about="Mass: the share of the pull on tokens outside the clip band. Equal rewards teach nothing new.",
    ),
    Chart(
        "Difficulty of prompts that come again", "pass rate",
        {"difficulty_drift": "mean change since the last visit", "difficulty_change": "mean size of the change"},
        about="Above 0 the same prompts became easier; a large size with no drift is forgetting as much as learning.",
    ),
    Chart("Response length", "tokens", {"response_length": "mean"}),
    Chart(
        "Turns", "of a conversation", {"turns": "mean", "turns_max": "longest"}, only_with="turns",
        about="How often the policy spoke before the environment ended it, or a limit did.",
    ),
    Chart(
        "Who wrote the conversations", "tokens of one",
        {"response_length": "policy", "environment_tokens": "environment"}, only_with="turns",
        about="Only the policy's are trained. Means over the step's responses.",
    ),
    Chart(
        "How conversations ended", "share of them",
        {f"conversations_ended_{why}": label for why, label in (
            ("done", "by the environment"), ("turns", "sampling.max_turns"),
            ("tokens", "sampling.max_conversation_tokens"), ("length", "sampling.max_tokens"))},
        stacked=True, only_with="turns",
    ),
    Chart(
        "Turns and their engines", "turns",
        {"turns_moved": "drawn by another engine than the turn before", "redrawn_turns": "drawn again: engine lost"},
        only_with="turns", about="Another engine computes the conversation's prefix anew.",
    ),
    Chart("Staleness", "steps", {"staleness": "mean", "staleness_max": "oldest group"}),
    Chart(
        "Behaviour against policy", "nats",
        {"anchor_drift": "mean drift of a token", "mismatch_kl": "KL (k3)"},
    ),
    Chart(
        "Proof of published weights", "nats",
        {"publish_difference_typical": "typical difference of engine and learner",
         "publish_difference_baseline": "with equal weights", "publish_difference_typical_limit": "limit"},
        about="Log-probs of fixed prompts. An engine above the limit has other weights, and is replaced.",
    ),
    Chart("Throughput", "response tokens per second", {"tokens_per_second": "whole step"}),
    Chart(
        "Where the time goes", "share of the step",
        {f"seconds_{stage}": stage for stage in ("sample", "verify", "anchor", "project", "publish", "wait")},
        stacked=True,
    ),
    Chart(
        "What the engines do", "share of the step",
        {f"engines_{stage}": stage for stage in ("sample", "verify", "publish", "evaluate", "wait")},
        stacked=True,
    ),
    Chart(
        "What the learner does", "share of the step",
        {f"learner_{stage}": stage for stage in ("anchor", "project", "publish", "checkpoint", "evaluate", "wait")},
        stacked=True,
    ),
)  # fmt: skip
