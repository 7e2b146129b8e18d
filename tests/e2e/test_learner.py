"""ZeRO-3 ranks without the rest: the paper's identity, the split over ranks, another world size, numbers gone wrong."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.cluster import connect, disconnect
from actors.learner.group import LearnerGroup
from actors.learner.worker import LearnerWorker
from lpo_ray.errors import CheckpointDamaged, ConfigError, LearnerLost
from lpo_ray.learner.packing import pack_step
from lpo_ray.records import StepReport
from lpo_ray.run.settings import packing
from lpo_ray.run.spec import RunSpec
from tests.support.learner_ranks import Ranks, make_targets, steps
from tests.support.pickles import Evil
from tests.support.real_specs import plan_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Iterator[Ranks]:
    connect(plan_of(tmp_path_factory.mktemp("runs"), tiny_policy).config)
    found = Ranks()
    try:
        yield found
        found.close()
    finally:
        disconnect()


async def weights_of(learner: LearnerGroup) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        await learner.save(Path(folder))
        return load_file(Path(folder) / "policy" / "model.safetensors")


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over norm of the weights."""
    a, b = (torch.cat([tensor.double().flatten() for _, tensor in sorted(w.items())]) for w in (left, right))
    return float((a - b).norm() / b.norm())


def test_on_policy_lpo_rev_and_grpo_give_the_same_weights(ranks: Ranks, tiny_policy: Path, tmp_path: Path) -> None:
    """Proposition 1, on two ZeRO-3 ranks: the same samples, tau, ddof and floor, one update."""

    def after(*overrides: str) -> dict[str, torch.Tensor]:
        spec = plan_of(tmp_path, tiny_policy, *overrides)

        async def one(learner: LearnerGroup) -> dict[str, torch.Tensor]:
            before = await weights_of(learner)
            batch = pack_step(make_targets(), packing(spec), step=0, seed=0, updates=1, learning_rate=1e-3)
            await learner.project(batch)
            found = await weights_of(learner)
            assert distance(found, before) > 1e-3
            return found

        return ranks.on(spec, tiny_policy, one)

    lpo = after("objective.divergence=reverse_kl", "objective.token_clip.kind=clamp")
    grpo = after("objective.divergence=first_order", "objective.token_clip.kind=ppo_ratio")
    forward = after("objective.divergence=forward_kl", "objective.token_clip.kind=clamp")
    assert distance(lpo, grpo) <= 1e-7
    assert distance(lpo, forward) > 1e-4


@pytest.mark.long
def test_the_split_over_ranks_and_micro_batches_does_not_matter(
    ranks: Ranks, tiny_policy: Path, tmp_path: Path
) -> None:
    """Two steps of two updates: the second updates of a split run collect their log-ratios over the ranks. AdamW makes
    of a gradient's rounding what it likes where the gradient is nearly 0, hence a small rate and a bound for it.
    """
    layouts = {
        "whole": ("pipeline.tokens_per_micro_batch=100000",),
        "one rank": ("pipeline.tokens_per_micro_batch=100000", "learner.world_size=1"),
        "one response": ("pipeline.tokens_per_micro_batch=1",),
        "one response, shared prompt": ("pipeline.tokens_per_micro_batch=1", "pipeline.share_prompt=true"),
        "shared prompt": ("pipeline.tokens_per_micro_batch=60", "pipeline.share_prompt=true"),
        "padded": ("pipeline.tokens_per_micro_batch=60", "learner.attention=padded"),
        "checkpointing": ("pipeline.tokens_per_micro_batch=60", "learner.gradient_checkpointing=true"),
    }
    found = {}
    for name, overrides in layouts.items():
        base = ("objective.divergence=reverse_kl", "pipeline.share_prompt=false")
        spec = plan_of(tmp_path, tiny_policy, *base, *overrides)

        async def two(learner: LearnerGroup, spec: RunSpec = spec) -> tuple[dict[str, torch.Tensor], list[StepReport]]:
            reports = await steps(learner, spec, 2, lr=1e-4)
            return await weights_of(learner), reports

        found[name] = ranks.on(spec, tiny_policy, two)
    weights, reports = found["whole"]
    for name, (other, other_reports) in found.items():
        assert distance(other, weights) < 2e-5, name
        for report, expected in zip(other_reports, reports, strict=True):
            for update, wanted in zip(report.updates, expected.updates, strict=True):
                assert update.norms.gradient == pytest.approx(wanted.norms.gradient, rel=1e-3), name
                assert [group.responses for group in update.groups] == [group.responses for group in wanted.groups]
    assert found["padded"][1][0].updates[0].padding > 0.05
    assert found["whole"][1][0].updates[0].padding == 0.0


def test_a_checkpoint_goes_from_one_rank_to_two_and_back(ranks: Ranks, tiny_policy: Path, tmp_path: Path) -> None:
    """Weights bit for bit, and the next step as if nothing had happened: moments and step count travel too."""
    one, two = (plan_of(tmp_path, tiny_policy, f"learner.world_size={size}") for size in (1, 2))

    async def begin(learner: LearnerGroup) -> tuple[str, dict[str, torch.Tensor]]:
        await steps(learner, one, 2)
        (tmp_path / "a").mkdir()
        await learner.save(tmp_path / "a")
        digest = await learner.digest()
        await steps(learner, one, 2, first=2)
        return digest, await weights_of(learner)

    async def middle(learner: LearnerGroup) -> tuple[str, str]:
        await learner.restore(tmp_path / "a", 1)
        restored = await learner.digest()
        await steps(learner, two, 1, first=2)
        (tmp_path / "b").mkdir()
        await learner.save(tmp_path / "b")
        return restored, await learner.digest()

    async def end(learner: LearnerGroup) -> tuple[str, dict[str, torch.Tensor]]:
        await learner.restore(tmp_path / "b", 2)
        restored = await learner.digest()
        await steps(learner, one, 1, first=3)
        return restored, await weights_of(learner)

    saved, uninterrupted = ranks.on(one, tiny_policy, begin)
    restored, saved_by_two = ranks.on(two, tiny_policy, middle)
    assert restored == saved
    restored, resumed = ranks.on(one, tiny_policy, end)
    assert restored == saved_by_two
    assert distance(resumed, uninterrupted) < 1e-5
    assert not list(tmp_path.glob(".partial-*"))


@pytest.mark.parametrize("zero", ["{}", "{offload_optimizer: {device: cpu}}"], ids=["plain", "offload"])
def test_a_gradient_that_is_not_finite_is_dropped_on_all_ranks(
    zero: str, ranks: Ranks, tiny_policy: Path, tmp_path: Path
) -> None:
    spec = plan_of(
        tmp_path,
        tiny_policy,
        "objective.token_clip.kind=tests.support.e2e_verifiers:not_finite",
        f"learner.deepspeed={{zero_optimization: {zero}}}",
    )

    async def work(learner: LearnerGroup) -> tuple[list[str], list[StepReport]]:
        digests = [await learner.digest()]
        reports = await steps(learner, spec, 1)
        digests.append(await learner.digest())
        return digests, reports

    (before, after), (report,) = ranks.on(spec, tiny_policy, work)
    assert before == after
    for update in report.updates:
        assert not update.norms.applied
        assert update.not_finite[0].what == "loss"
        assert update.not_finite[0].prompt_id.startswith("train-")


def dtypes_of_sums(worker: LearnerWorker) -> list[torch.dtype]:
    """Of gradients added up over micro-batches, and over ranks."""
    optimizer = worker._policy.engine.optimizer
    return [optimizer.grad_partitions_flat_buffer.dtype, optimizer.communication_data_type]


def test_bfloat16_and_offload_take_steps(ranks: Ranks, tiny_policy: Path, tmp_path: Path) -> None:
    spec = plan_of(
        tmp_path, tiny_policy, "model.dtype=bfloat16", "objective.reference_kl=0.1",
        "learner.deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}",
    )  # fmt: skip

    async def work(learner: LearnerGroup) -> tuple[dict[str, torch.Tensor], list[StepReport]]:
        before = await weights_of(learner)
        reports = await steps(learner, spec, 2)
        for rank in learner.ranks:
            assert await rank.__ray_call__.remote(dtypes_of_sums) == [torch.float32, torch.float32]
        assert distance(await weights_of(learner), before) > 1e-4
        return before, reports

    before, reports = ranks.on(spec, tiny_policy, work)
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    assert all(update.norms.applied for report in reports for update in report.updates)
    norms = reports[1].updates[1].norms
    assert set(norms.gradient_by_kind) == set(norms.update_ratio_by_kind) == {"embedding", "attention", "mlp", "norm"}
    assert sum(value**2 for value in norms.gradient_by_kind.values()) == pytest.approx(norms.gradient**2, rel=1e-3)
    first, last = reports[0].updates[0].groups, reports[1].updates[1].groups
    assert not any(group.reference_kl.any() for group in first)
    assert all(group.reference_kl.mean() > 0 for group in last)


def test_ranks_share_the_forwards_of_logprobs(ranks: Ranks, tiny_policy: Path, tmp_path: Path) -> None:
    spec = plan_of(tmp_path, tiny_policy)
    groups = [target.group for target in make_targets(5)]
    forwards = [[(g.prompt.token_ids, [r.segments for r in g.responses])] for g in groups]

    async def both(learner: LearnerGroup) -> None:
        assert learner.world_size == 2
        expected = [row for bundles in forwards for row in await learner.probe(bundles)]
        for count in (1, 2, 5):
            found = await learner.logprobs(forwards[:count], 1.0)
            assert len(found) == 4 * count
            for row, wanted in zip(found, expected, strict=False):
                np.testing.assert_array_equal(row, wanted)
        tempered = await learner.logprobs(forwards[:1], 0.5)
        assert np.abs(tempered[0] - expected[0]).max() > 0.1

    ranks.on(spec, tiny_policy, both)


def save_as_before(worker: LearnerWorker, folder: Path) -> None:
    worker._policy.engine.save_checkpoint(str(folder), tag="shards")


def test_shards_that_would_run_code_are_refused_and_nothing_runs(
    ranks: Ranks, tiny_policy: Path, tmp_path: Path
) -> None:
    """Shards of an earlier version that were tampered with, whatever the number of ranks that wrote them."""
    one = plan_of(tmp_path, tiny_policy, "learner.world_size=1")
    saved, mark = tmp_path / "step_000001", tmp_path / "ran"
    refused: list[str] = []

    async def work(learner: LearnerGroup) -> None:
        await steps(learner, one, 1)
        await learner.ranks[0].__ray_call__.remote(save_as_before, saved)
        before = await learner.digest()
        await steps(learner, one, 1, first=1)
        await learner.restore(saved, 1)  # as it was written
        assert await learner.digest() == before
        [shard] = saved.rglob("*optim_states.pt")
        content = torch.load(shard, weights_only=False)
        for written_by in (1, 2):
            torch.save({**content, "evil": Evil(mark)}, shard)
            if written_by == 2:
                shutil.copyfile(shard, shard.with_name("zero_pp_rank_1_mp_rank_00_optim_states.pt"))
            with pytest.raises(CheckpointDamaged) as error:
                await learner.restore(saved, written_by)
            refused.append(str(error.value))

    ranks.on(one, tiny_policy, work)
    assert not mark.exists()
    assert all("has more than tensors" in text for text in refused), refused
    assert torch.load(next(saved.rglob("*optim_states.pt")), weights_only=False)["evil"] is None
    assert mark.exists()  # the trap was a real one


def test_a_rank_that_does_not_answer_is_shown_with_its_stack(ranks: Ranks, tiny_policy: Path, tmp_path: Path) -> None:
    """One rank is stopped; the other waits for it in a collective. Both are late, and the message tells them apart."""
    spec = plan_of(tmp_path, tiny_policy)

    async def work(learner: LearnerGroup) -> str:
        process, seconds = learner.processes[1], learner._watch.seconds
        learner._watch.seconds = 4.0
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(LearnerLost) as caught:
                await learner.digest()
        finally:
            learner._watch.seconds = seconds
            os.kill(process.pid, signal.SIGCONT)
        stopped = f"process {process.pid} is stopped"
        assert caught.value.who == "learner rank 0, learner rank 1"
        assert stopped in str(caught.value)
        return str(caught.value).partition(stopped)[0]

    waiting = ranks.on(spec, tiny_policy, work)
    assert "barrier" in waiting  # where rank 0 is
    assert "stage (actors/transports/staging.py" in waiting


def test_a_model_whose_numbers_are_not_its_own_is_refused_by_every_rank(
    ranks: Ranks, tiny_policy: Path, tmp_path: Path
) -> None:
    """The dry check is a collective: both ranks say so, and none waits for the other."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_policy, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.norm.weight": torch.full_like(weights["model.norm.weight"], torch.nan)},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip

    async def work(learner: LearnerGroup) -> None:
        raise AssertionError("it was loaded")

    with pytest.raises(ConfigError, match="Qwen3ForCausalLM gives log-probs that are not finite"):
        ranks.on(plan_of(tmp_path, folder), folder, work)
