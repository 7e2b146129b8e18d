"""The loop on the in-process components: every point of the grid takes a step, and the engine serves what it learnt."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lpo_ray.config import load_config
from lpo_ray.errors import GroupLost, WeightsNotProved
from lpo_ray.objective import DIVERGENCES, TOKEN_CLIPS
from lpo_ray.policy.adapter_files import read_settings, read_tensors
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.policy.weights import published
from lpo_ray.run.inprocess import InprocessComponents, build_inprocess
from lpo_ray.run.settings import loop_settings, proof_limits, sampling
from lpo_ray.run.signals import first_cause
from lpo_ray.run.spec import RunSpec, make_spec
from lpo_ray.training.ledger import Ledger
from lpo_ray.training.loop import TrainingLoop
from tests.support.e2e_environments import answer_of, share_of_digits
from tests.support.fakes import FakeObserver

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def prepare(folder: Path, policy: Path, *overrides: str) -> tuple[RunSpec, InprocessComponents]:
    spec = make_spec(
        load_config(
            QUICKSTART,
            [
                f"run.dir={folder}", "run.steps=1", "cluster.kind=inprocess", "learner.world_size=1", "learner.lr=1e-3",
                "pipeline.groups_per_step=2", "sampling.max_tokens=6", f"model.path={policy}", "sampling.group_size=4",
                "task.verifier=tests.support.e2e_verifiers:digits", *overrides,
            ],
        )
    )  # fmt: skip
    return spec, build_inprocess(spec, str(policy))


async def one_step(spec: RunSpec, parts: InprocessComponents, folder: Path, policy: Path) -> FakeObserver:
    observer = FakeObserver()
    version = (await parts.transport.publish(0)).version
    source = spec.source(Tokenizer.load(str(policy)))
    loop = TrainingLoop(parts, source, Ledger(folder / "ledger.sqlite"), loop_settings(spec), observer)
    await loop.run(version)
    return observer


@pytest.mark.parametrize("behaviour", ["recomputed", "engine"])
@pytest.mark.parametrize("kind", TOKEN_CLIPS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
async def test_every_point_of_the_grid_takes_a_step(
    divergence: str, kind: str, behaviour: str, tmp_path: Path, tiny_policy: Path
) -> None:
    spec, parts = prepare(
        tmp_path, tiny_policy, f"objective.divergence={divergence}", f"objective.token_clip.kind={kind}",
        f"objective.behaviour={behaviour}",
    )  # fmt: skip
    observer = await one_step(spec, parts, tmp_path, tiny_policy)
    report = observer.steps[0].report
    assert all(np.isfinite(update.norms.gradient) and update.norms.gradient > 0 for update in report.updates)
    assert all(np.isfinite(group.coefficient).all() for group in report.groups)
    assert max(np.abs(group.engine_mismatch).max() for group in report.groups) < 1e-4


async def test_one_response_a_prompt_trains_as_virtual_groups(tmp_path: Path, tiny_policy: Path) -> None:
    spec, parts = prepare(
        tmp_path, tiny_policy, "sampling.group_size=1", "objective.ddof=0", "pipeline.groups_per_step=4"
    )
    observer = await one_step(spec, parts, tmp_path, tiny_policy)
    coefficients = np.concatenate([group.coefficient for group in observer.steps[0].report.groups])
    assert len(coefficients) == 4
    assert np.abs(coefficients).max() <= 0.5
    assert coefficients.any()


async def test_weights_that_did_not_arrive_are_noticed(
    tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, parts = prepare(tmp_path, tiny_policy)
    monkeypatch.setattr(parts.rollout, "load", lambda weights, step: None)
    with pytest.raises(ExceptionGroup) as caught:
        await one_step(spec, parts, tmp_path, tiny_policy)
    cause = first_cause(caught.value)
    assert isinstance(cause, WeightsNotProved)
    assert "the in-process engine does not serve weights version 1:" in str(cause)


async def test_an_unscored_response_loses_its_group(tmp_path: Path, tiny_policy: Path) -> None:
    spec, parts = prepare(tmp_path, tiny_policy, "task.verifier=tests.verifiers.test_verdict:raises")
    source = spec.source(Tokenizer.load(str(tiny_policy)))
    group = await parts.rollout.sample(source.train(0), sampling(spec), 0)
    with pytest.raises(GroupLost, match="response 0 stayed unscored: RuntimeError: no network"):
        await parts.verifier.score(group)


async def test_whatever_the_stage_it_is_this_process_and_it_can_be_looked_at(tmp_path: Path, tiny_policy: Path) -> None:
    _, parts = prepare(tmp_path, tiny_policy)
    (holder,) = parts.busy("project")
    assert holder.process is not None
    assert holder.process.pid == os.getpid()
    text = await parts.inspect(holder.process)
    assert text.startswith(f"process {os.getpid()} is ")
    assert "MiB resident" in text


async def test_the_baseline_stays_with_the_run_whatever_the_number_of_ranks_and_engines(
    tmp_path: Path, tiny_policy: Path
) -> None:
    spec, parts = prepare(tmp_path, tiny_policy, "model.dtype=bfloat16", "rollout.dtype=bfloat16")
    publication = await parts.transport.publish(0)
    first = proof_limits(spec, str(tiny_policy), [])
    assert first.baseline.typical < 0.05  # both compute with transformers
    assert publication.proof["baseline"] == publication.proof["typical"] == first.baseline.typical
    assert publication.difference == first.baseline.largest > 0
    prompts = spec.source(spec.tokenizer(str(tiny_policy)))
    assert first.probe[0][: len(prompts.train(0).token_ids)].tolist() == prompts.train(0).token_ids.tolist()
    scaled, _ = prepare(
        tmp_path, tiny_policy, "model.dtype=bfloat16", "rollout.dtype=bfloat16", "learner.min_world_size=1",
        "rollout.num_workers=3", "run.seed=7",
    )  # fmt: skip
    assert proof_limits(scaled, str(tiny_policy), []).baseline == first.baseline
    other, _ = prepare(tmp_path, tiny_policy)  # float32
    assert proof_limits(other, str(tiny_policy), []).baseline is None


async def test_conversations_are_conducted_and_scored_by_their_environment(tmp_path: Path, tiny_policy: Path) -> None:
    spec, parts = prepare(
        tmp_path, tiny_policy, "task.environment=tests.support.e2e_environments:Thrice", "sampling.max_tokens=6",
        "sampling.group_size=2", "environment.processes=1",
    )  # fmt: skip
    tokenizer = Tokenizer.load(str(tiny_policy))
    try:
        group = await parts.rollout.sample(spec.source(tokenizer).train(0), sampling(spec), 0)
        scored = await parts.verifier.score(group)
    finally:
        await parts.close()
    for response, reward in zip(group.responses, scored.rewards, strict=True):
        conversation = response.conversation
        assert conversation is not None
        assert conversation.verdict is not None
        assert float(reward) == np.float32(conversation.verdict.reward)
        (segment,) = conversation.segments
        turns = np.split(response.token_ids, np.cumsum(conversation.turns)[:-1])
        said = "".join(tokenizer.decode(ids) for ids in turns)
        assert conversation.verdict.reward == pytest.approx(share_of_digits(said))
        assert segment.context_ids is None
        if len(conversation.turns) > 1:
            answer = tokenizer.encode(answer_of(tokenizer.decode(turns[0])))
            assert segment.token_ids[len(turns[0]) :][: len(answer)].tolist() == answer.tolist()


async def test_an_adapter_alone_is_published_and_saved(tmp_path: Path, tiny_policy: Path) -> None:
    spec, parts = prepare(tmp_path, tiny_policy, "model.lora.rank=2", "objective.reference_kl=0.1")
    await one_step(spec, parts, tmp_path, tiny_policy)
    trained = published(parts.learner.policy.model)
    assert all(".lora_" in name for name in trained) and parts.engine.step == 1
    assert (await parts.transport.publish(2)).num_bytes == sum(parameter.nbytes for parameter in trained.values())
    (tmp_path / "saved").mkdir()
    await parts.learner.save(tmp_path / "saved")
    found, base = read_settings(str(tmp_path / "saved" / "policy"))
    assert (found.rank, base) == (2, str(tiny_policy))
    assert read_tensors(str(tmp_path / "saved" / "policy")).keys() == trained.keys()
