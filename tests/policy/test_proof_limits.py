"""What is rounding and what is other weights: limits by a baseline of equal weights, which stays with the run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.errors import ConfigError
from lpo_ray.policy.proof_limits import FULL, HALF, ProofLimits, is_mixture, open_limits
from lpo_ray.policy.weights_proof import Agreement, compare

PROBE = [np.arange(5), np.arange(4)]
BASELINE = Agreement(0.02, 0.25, 1.06)
"""SmolLM2 in bf16"""


def limits_of(**changes: object) -> ProofLimits:
    given_ = {"tolerance": None, "arithmetic": {"rollout.dtype": "bfloat16"}, "full": False, "mixture": False}
    return ProofLimits(PROBE, **{**given_, "baseline": BASELINE, **changes})


def test_that_a_publish_does_not_reach_all_weights_is_kept_with_the_baseline(tmp_path: Path) -> None:
    file = tmp_path / "proof.json"
    first = open_limits(file, limits_of(baseline=None))
    assert not first.proves_blank
    first.measured([BASELINE])
    assert first.proves_blank
    assert open_limits(file, limits_of(baseline=None)).proves_blank
    first.reached_not()
    again = open_limits(file, limits_of(baseline=None))
    assert again.baseline == first.baseline
    assert not again.proves_blank


def test_limits_follow_the_baseline() -> None:
    proof = limits_of()
    assert proof.excess(Agreement(0.059, 2.4, 1.0)) is None
    assert proof.excess(Agreement(0.061, 0.3, 1.0)) == (
        0.061, pytest.approx(0.06), "the typical difference; with equal weights typical was 0.02, largest 0.25"
    )  # fmt: skip
    difference, limit, words = proof.excess(Agreement(0.01, 2.6, 1.0)) or pytest.fail("it is too large")
    assert (difference, limit) == (2.6, 2.5)
    assert words.startswith("the largest difference")


def test_a_policy_that_finds_the_probe_unlikely_rounds_more() -> None:
    """SmolLM2 with a third of each weight as noise on top: 8.9 nats a token, and an engine with the same weights."""
    astray = Agreement(0.335, 9.5, 8.87)
    proof = limits_of()
    assert proof.excess(astray) is None
    assert proof.excess(dataclasses.replace(astray, surprise=1.0))
    assert proof.limits(0.5) == proof.limits(1.0)  # and one that finds it likely is held to what it was
    certain = limits_of(baseline=Agreement(0.02, 0.25, 1e-6))
    assert certain.limits(0.1) == certain.limits(0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(bad: float) -> None:
    for proof in (limits_of(), limits_of(baseline=None), limits_of(tolerance=1.0)):
        assert proof.excess(Agreement(bad, float("inf"), 1.0))
        assert proof.excess(Agreement(0.001, float("inf"), 1.0))


def test_limits_are_never_narrower_than_rounding_may_become() -> None:
    nothing = Agreement(0.0, 0.0, 5.0)
    assert limits_of(baseline=nothing).limits(5.0) == HALF.least
    assert limits_of(baseline=nothing, full=True).limits(5.0) == FULL.least
    assert limits_of(baseline=nothing, mixture=True).limits(5.0).largest == 5.0


def test_a_number_is_a_limit_of_the_largest_difference_as_it_always_was() -> None:
    proof = limits_of(tolerance=0.5)
    assert proof.excess(Agreement(0.4, 0.5, 1.0)) is None
    assert proof.excess(Agreement(0.001, 0.51, 1.0)) == (
        0.51, 0.5, "the largest difference, with transport.tolerance set"
    )  # fmt: skip


def test_the_engine_nearest_to_the_learner_is_the_baseline_of_all() -> None:
    proof = limits_of(baseline=None)
    good, bad = Agreement(0.02, 0.25, 1.0), Agreement(0.19, 0.9, 1.0)
    assert proof.excess(bad) is None  # of any model in bf16 it could be rounding
    proof.measured([bad, good])
    assert proof.baseline == good
    assert proof.excess(bad)
    proof.measured([Agreement(0.001, 0.002, 1.0)])
    assert proof.baseline == good  # it is measured once


@pytest.mark.parametrize("found", [Agreement(0.3, 0.9, 1.0), Agreement(0.01, float("inf"), 1.0)])
def test_what_is_beyond_all_rounding_is_no_baseline(found: Agreement) -> None:
    proof = limits_of(baseline=None)
    proof.measured([found])
    assert proof.baseline is None
    assert proof.excess(found)
    proof.measured([])
    assert proof.baseline is None


def test_a_resumed_run_has_the_probe_and_the_baseline_of_the_first(tmp_path: Path) -> None:
    file = tmp_path / "proof.json"
    first = open_limits(file, limits_of(baseline=None))
    assert not file.exists()
    first.measured([BASELINE])
    fresh = limits_of(baseline=None)
    fresh.probe = [np.arange(9), np.arange(2)]  # the data has changed meanwhile
    second = open_limits(file, fresh)
    assert second.baseline == BASELINE
    assert [row.tolist() for row in second.probe] == [row.tolist() for row in PROBE]


def test_another_arithmetic_is_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "proof.json"
    open_limits(file, limits_of(baseline=None)).measured([BASELINE])
    other = open_limits(file, limits_of(baseline=None, arithmetic={"rollout.dtype": "float32"}))
    assert other.baseline is None
    assert "the proof's baseline is measured again: it was for {'rollout.dtype': 'bfloat16'}" in caplog.text
    other.measured([Agreement(1e-6, 1e-5, 1.0)])
    assert json.loads(file.read_text())["arithmetic"] == {"rollout.dtype": "float32"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"probe": [["a"]]}', '{"probe": [], "baseline": {"typical": null}}']
)
def test_a_file_that_is_no_baseline_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "proof.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="remove the file, and it is measured again"):
        open_limits(file, limits_of())


@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.5, 1.0]), st.floats(0.01, 0.1))
@settings(max_examples=300, deadline=None)
def test_rounding_is_never_refused_and_ten_times_as_much_always_is(seed: int, uncertain: float, size: float) -> None:
    """``uncertain``: share of tokens that are not as good as certain, and so show rounding. Tails are heavy, as
    measured, and two tokens of each version go to another expert.
    """
    rng = np.random.default_rng(seed)
    visible = np.where(np.arange(129) < 129 * uncertain, 1.0, 0.02)
    expected = [np.full(129, -1.0)]

    def version(times: float) -> Agreement:
        noise = rng.standard_t(5, 129) * visible * size * times
        noise[rng.integers(0, 129, 2)] += 20 * size
        return compare(expected, [expected[0] + noise])

    proof = limits_of(baseline=None, mixture=True)
    proof.measured([version(1.0)])
    assert proof.excess(version(1.0)) is None
    assert proof.excess(version(10.0))


def test_a_mixture_is_known_by_its_experts() -> None:
    assert is_mixture(["model.layers.0.mlp.experts.gate_up_proj"])
    assert not is_mixture(["model.layers.0.mlp.gate_proj.weight"])
