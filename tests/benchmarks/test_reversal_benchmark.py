"""The token-reversal benchmark measures lpo-ray's objective on TPO's task: its parts against what they stand for."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lpo_ray.learner.merge_ranks import merge_log_ratios
from lpo_ray.learner.packing import Packing, balance, pack_update
from lpo_ray.learner.settings import Objective
from lpo_ray.learner.targets import TargetRule, build_targets
from lpo_ray.learner.updates import log_ratios_to_engine, run_updates
from lpo_ray.policy.layout import Layout
from lpo_ray.records import Prompt, PromptGroup, Response, ScoredGroup, StepNorms, zero_anchor
from lpo_ray.verifiers.token_reversal import token_reversal
from tests.benchmarks import token_reversal as command
from tests.benchmarks import token_reversal_report as report
from tests.benchmarks.reversal import published
from tests.benchmarks.reversal.arms import ARMS, loss, moves
from tests.benchmarks.reversal.model import Policy, Shape, response_logprobs
from tests.benchmarks.reversal.optimiser import EPS, Muon, orthogonalise
from tests.benchmarks.reversal.task import Batch, reward, sample
from tests.benchmarks.reversal.train import Setting, errors, update

H, K = 4, 4


def make_policy(seed: int = 0, width: int = 16) -> Policy:
    policy = Policy(Shape(2 * H, width=width), torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return policy


def make_batch(policy: Policy, groups: int = 12) -> Batch:
    """Among its groups are some with, and some without, a right response; prompts come more than once."""
    prompts = torch.randint(2, (groups, H), generator=torch.Generator().manual_seed(5))
    batch = sample(policy, prompts, K, torch.Generator().manual_seed(6))
    rewards = batch.rewards.clone()
    rewards[0] = torch.tensor([1.0, 0, 0, 1])
    rewards[1] = 1.0
    return dataclasses.replace(batch, rewards=rewards)


def whole(policy: Policy, tokens: torch.Tensor) -> torch.Tensor:
    return policy(tokens)[0]


def test_reward_is_the_verifiers() -> None:
    prompts = torch.randint(2, (50, 2), generator=torch.Generator().manual_seed(0))
    responses = torch.randint(2, (50, K, 2), generator=torch.Generator().manual_seed(1))
    rewards = reward(prompts, responses)
    assert 0 < rewards.mean() < 1
    for prompt, group, given in zip(prompts, responses, rewards, strict=True):
        symbols = "".join(map(str, prompt.tolist()))
        for response, value in zip(group, given, strict=True):
            said = " ".join(map(str, response.tolist()))
            assert token_reversal(symbols, said, symbols[::-1]).reward == value
    with pytest.raises(ValueError, match=r"prompts \(50, 2\), responses \(50, 4, 1\)"):
        reward(prompts, responses[..., :1])


def test_no_token_sees_what_comes_after_it() -> None:
    policy = make_policy()
    tokens = torch.randint(2, (3, 2 * H), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[:, 5] = 1 - changed[:, 5]
    before, after = whole(policy, tokens), whole(policy, changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert ((before - after)[:, 5:].abs().amax((0, 2)) > 1e-6).all()


@pytest.mark.parametrize("start", [1, H, 2 * H - 1])
def test_a_sequence_continued_from_its_cache_is_the_sequence(start: int) -> None:
    policy = make_policy()
    tokens = torch.randint(2, (3, 2 * H), generator=torch.Generator().manual_seed(2))
    _, cache = policy(tokens[:, :start])
    torch.testing.assert_close(policy(tokens[:, start:], cache)[0], whole(policy, tokens)[:, start:])


def test_distinct_rows_give_the_log_probs_and_gradients_of_all_rows() -> None:
    policy = make_policy()
    batch = make_batch(policy)
    prompts = batch.prompts[batch.owner][batch.row]
    assert len(batch.prompts) < 12 and len(batch.responses) < 12 * K
    plain = torch.cat([prompts, batch.responses[batch.row]], -1).flatten(0, 1)
    wanted = whole(policy, plain)[:, H - 1 : -1].log_softmax(-1).gather(-1, plain[:, H:, None])[..., 0]
    found = batch.logprobs(policy)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(batch.behaviour.flatten(0, 1), wanted)
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3)).double()
    parameters = list(policy.parameters())
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), parameters),
        torch.autograd.grad((wanted * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    mask = torch.arange(12) % 3 == 0
    part = batch.only(mask)
    torch.testing.assert_close(part.logprobs(policy), wanted.view(12, K, H)[mask].flatten(0, 1))
    assert torch.equal(part.rewards, batch.rewards[mask])


def test_sampled_responses_have_the_policys_frequencies() -> None:
    policy = make_policy()
    prompts = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]])
    batch = sample(policy, prompts, 4000, torch.Generator().manual_seed(1))
    all_responses = torch.cartesian_prod(*[torch.arange(2)] * H)
    for number in range(2):
        owner = torch.full((2**H,), number)
        wanted = response_logprobs(policy, prompts, owner, all_responses).sum(-1).detach().exp()
        assert math.isclose(float(wanted.sum()), 1.0, abs_tol=1e-9)
        codes = (batch.responses[batch.row[number]] * torch.tensor([8, 4, 2, 1])).sum(-1)
        found = torch.bincount(codes, minlength=2**H) / 4000
        assert (found - wanted).abs().max() < 5 * 0.5 / math.sqrt(4000)


class Scoring:
    """TrainablePolicy over the benchmark's model: gradients are kept, not applied."""

    packed, share_prompt = False, False

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def score(self, layout: Layout, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        table = whole(self.policy, layout.token_ids).flatten(0, 1)[layout.select].log_softmax(-1)
        return table.gather(-1, layout.targets[:, None])[:, 0], -(table.exp() * table).sum(-1).detach()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> StepNorms:
        return StepNorms(0.0, True, {}, {})

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        return values


def scored(batch: Batch, behaviour: torch.Tensor) -> list[ScoredGroup]:
    groups = []
    for number, (rows, rewards) in enumerate(zip(batch.row, batch.rewards, strict=True)):
        prompt = batch.prompts[batch.owner[rows[0]]].numpy()
        responses = tuple(
            Response(batch.responses[row].numpy(), logprobs.float().numpy(), np.zeros(H, dtype=np.int64), "stop")
            for row, logprobs in zip(rows, behaviour[number], strict=True)
        )
        group = PromptGroup(Prompt(f"p{number}", prompt, "", "token_reversal"), 0, responses)
        groups.append(ScoredGroup(group, rewards.float().numpy()))
    return groups


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.clip_unit == "token"])
@pytest.mark.parametrize("moved", [False, True])
def test_an_update_is_the_learners(name: str, moved: bool) -> None:
    """At the snapshot and after it has moved. TPO's log-probs are log-ratios to an engine that gave probability 1."""
    arm, policy = ARMS[name], make_policy()
    batch = make_batch(policy)
    divided = torch.zeros_like(batch.behaviour) if arm.logits == "logprob" else batch.behaviour
    groups = scored(batch, divided)
    objective = Objective(
        arm.divergence, arm.clip, 0.2, 0.2, arm.length_norm, 1.0, behaviour_from_engine=True, reference_kl=0.0
    )
    packing = Packing(tokens_per_micro_batch=10**6, world_size=1, share_prompt=False)
    anchor = merge_log_ratios(groups, log_ratios_to_engine(Scoring(policy), balance(groups, packing)[0], objective))
    if arm.logits == "ratio":
        anchor = zero_anchor(groups)
    targets = build_targets(groups, anchor, TargetRule("group_std", 0, 1e-6, anchored=not arm.first_order))
    if moved:
        policy.load_state_dict({key: value * 1.05 for key, value in policy.state_dict().items()})
    run_updates(Scoring(policy), [pack_update(targets, packing)], 0, objective, 0.0)
    parameters = list(policy.parameters())
    value = loss(arm, batch.logprobs(policy), batch.behaviour, batch.rewards) / len(groups)
    found = torch.autograd.grad(value, parameters)
    size = max(float(parameter.grad.abs().max()) for parameter in parameters)
    assert size > 1e-3
    for gradient, parameter in zip(found, parameters, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5 * size, rtol=1e-4)


@pytest.mark.parametrize("name", list(ARMS))
def test_groups_left_out_have_no_gradient(name: str) -> None:
    arm, policy = ARMS[name], make_policy()
    batch = make_batch(policy)
    still = ~moves(arm, batch.rewards, batch.behaviour)
    assert torch.equal(still, batch.rewards.std(-1) == 0)
    part = batch.only(still)
    for moved in (False, True):
        if moved:
            policy.load_state_dict({key: value * 1.05 for key, value in policy.state_dict().items()})
        value = loss(arm, part.logprobs(policy), part.behaviour, part.rewards)
        gradients = torch.autograd.grad(value, list(policy.parameters()))
        largest = max(float(gradient.abs().max()) for gradient in gradients)
        assert (largest > 1e-4) == (moved and arm.pulls_back)


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if not arm.snapshot_kl])
def test_groups_of_one_response_never_have_a_gradient(name: str) -> None:
    arm, policy = ARMS[name], make_policy()
    prompts = torch.randint(2, (6, H), generator=torch.Generator().manual_seed(5))
    batch = sample(policy, prompts, K, torch.Generator().manual_seed(6))
    row, behaviour = batch.row.clone(), batch.behaviour.clone()
    row[:3], behaviour[:3] = row[:3, :1], behaviour[:3, :1]
    batch = dataclasses.replace(batch, row=row, behaviour=behaviour, rewards=torch.zeros(6, K))
    assert batch.varied[:3].sum() == 0
    part = batch.only(~batch.varied)
    policy.load_state_dict({key: value * 1.05 for key, value in policy.state_dict().items()})
    value = loss(arm, part.logprobs(policy), part.behaviour, part.rewards)
    gradients = torch.autograd.grad(value, list(policy.parameters()))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-12


def test_published_grpo_is_its_formula() -> None:
    """Clipped ratio of the whole response, z-scored advantage, k3 to the snapshot: mean over the responses."""
    policy = make_policy()
    batch = make_batch(policy)
    before = batch.behaviour.flatten(0, 1).sum(-1)
    policy.load_state_dict({key: value * 1.05 for key, value in policy.state_dict().items()})
    logprobs = batch.logprobs(policy)
    ratio = (logprobs.sum(-1) - before).exp()
    centred = batch.rewards.double() - batch.rewards.double().mean(-1, keepdim=True)
    advantage = (centred / (centred.std(-1, correction=0, keepdim=True) + 1e-6)).flatten()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    wanted = -(surrogate - 0.04 * (1 / ratio + ratio.log() - 1)).sum() / K
    torch.testing.assert_close(loss(ARMS["grpo_kl"], logprobs, batch.behaviour, batch.rewards), wanted)


def test_published_tpo_is_its_formula() -> None:
    """Cross-entropy to softmax(log p_old + z): the gradients, since the loss is the surrogate."""
    policy = make_policy()
    batch = make_batch(policy)
    old = batch.behaviour.sum(-1)
    centred = batch.rewards.double() - batch.rewards.double().mean(-1, keepdim=True)
    z = centred / (centred.std(-1, correction=0, keepdim=True) + 1e-6)
    policy.load_state_dict({key: value * 1.05 for key, value in policy.state_dict().items()})
    logprobs = batch.logprobs(policy)
    scores = logprobs.view(*batch.behaviour.shape).sum(-1)
    cross_entropy = -((old + z).softmax(-1) * scores.log_softmax(-1)).sum()
    found = loss(ARMS["tpo"], logprobs, batch.behaviour, batch.rewards)
    (a,), (b,) = (torch.autograd.grad(value, [policy.head], retain_graph=True) for value in (found, cross_entropy))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["tpo", "grpo_kl", "grpo_no_kl"])
def test_steps_are_those_of_the_published_code(name: str) -> None:
    """Model, loss and optimiser together, momentum too: four batches, four updates on each."""
    steps = json.loads((Path(__file__).parents[1] / "data" / "tpo_steps.json").read_text())[name]
    policy = Policy(Shape(2 * published.HORIZON), torch.Generator().manual_seed(0))
    published.load(policy)
    optimiser = Muon(policy.parameters(), Setting().learning_rate)
    for step in steps:
        prompts, responses = torch.tensor(step["prompts"]), torch.tensor(step["responses"])
        distinct, row = torch.unique(responses.flatten(0, 1), dim=0, return_inverse=True)
        count = len(distinct)
        batch = Batch(
            prompts,
            torch.arange(len(prompts)).repeat_interleave(count),
            distinct.repeat(len(prompts), 1),
            row.view(responses.shape[:2]) + count * torch.arange(len(prompts))[:, None],
            torch.tensor(step["before"]),
            reward(prompts, responses),
        )
        with torch.no_grad():
            torch.testing.assert_close(batch.logprobs(policy), batch.behaviour.flatten(0, 1), atol=5e-4, rtol=0)
            exact = dataclasses.replace(batch, behaviour=batch.logprobs(policy).view_as(batch.behaviour))
        update(policy, optimiser, ARMS[name], exact, Setting().epochs)
        with torch.no_grad():
            after = torch.tensor(step["after"]).flatten(0, 1)
            torch.testing.assert_close(batch.logprobs(policy), after, atol=2e-3, rtol=0)


def test_muons_update_is_near_orthogonal_and_adams_is_one_rate() -> None:
    matrices = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(0)).double()
    singular = torch.linalg.svdvals(orthogonalise(matrices))
    assert ((singular > 0.6) & (singular < 1.3)).all()
    assert torch.equal(orthogonalise(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))
    wide, tall, rest = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 9), (9, 4), (7,)))
    gradient = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    Muon([wide, tall, rest], 0.1).step({wide: gradient, tall: gradient.T, rest: torch.tensor([3.0] * 7)})
    torch.testing.assert_close(tall.detach(), wide.detach().T * math.sqrt(9 / 4))
    torch.testing.assert_close(wide.detach(), -0.1 * orthogonalise(gradient[None])[0])
    first = (0.9 * 0.1 / (1 - 0.9**2) + 0.1 / (1 - 0.9)) * 3.0 / (3.0 + EPS)
    torch.testing.assert_close(rest.detach(), torch.full((7,), -0.1 * first))


def test_an_update_without_a_group_that_moves_still_steps() -> None:
    """With momentum: what the batches before have begun goes on."""
    policy = Policy(Shape(2 * H, width=16), torch.Generator().manual_seed(0))
    optimiser = Muon(policy.parameters(), 1e-3)
    batch = make_batch(policy)
    update(policy, optimiser, ARMS["grpo_no_kl"], batch, 1)
    before = policy.head.detach().clone()
    update(policy, optimiser, ARMS["grpo_no_kl"], dataclasses.replace(batch, rewards=torch.zeros(12, K)), 1)
    assert not torch.equal(policy.head, before) and optimiser.count == 2


@pytest.mark.parametrize("name", ["tpo", "lpo_sum"])
def test_it_learns_two_symbols(name: str) -> None:
    curve = list(errors(ARMS[name], 2, 0, Setting(batches=60, prompts=16)))
    assert np.mean(curve[:5]) > 0.5 and np.mean(curve[-5:]) < 0.2
    again = list(errors(ARMS[name], 2, 0, Setting(batches=5, prompts=16)))
    assert again == curve[:5]


def test_the_file_is_added_to_and_refuses_another_setting(tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "out.json"
    monkeypatch.setattr(
        "sys.argv", ["x", str(out), "--lengths", "2", "--seeds", "1", "--arms", "tpo", "--batches", "3"]
    )
    command.main()
    first = out.read_text()
    command.main()
    assert out.read_text() == first and len(capsys.readouterr().out.splitlines()) == 1
    assert json.loads(first)["runs"]["tpo"]["2"]["0"].keys() == {"curve", "last", "cpu_seconds"}
    monkeypatch.setattr(
        "sys.argv", ["x", str(out), "--lengths", "2", "--seeds", "1", "--arms", "tpo", "--batches", "4"]
    )
    with pytest.raises(SystemExit, match="name another file"):
        command.main()


def test_the_page_has_ours_beside_the_published(tmp_path, monkeypatch) -> None:
    def result(first: float, last: float) -> dict:
        return {"curve": [first] * 5 + [last] * 5, "last": last, "cpu_seconds": 1}

    runs = {
        "tpo": {"8": {"0": result(1.0, 0.1), "1": result(1.0, 0.3)}},
        "lpo_sum": {"10": {"0": result(1.0, 0.5)}},
        "lpo_mean": {"9": {str(seed): result(*pair) for seed, pair in enumerate([(1, 0), (0, 1), (1, 0.04)])}},
    }
    path = tmp_path / "token_reversal.json"
    setting = dataclasses.asdict(Setting(batches=200))
    path.write_text(json.dumps({"setting": setting, "every": 20, "runs": runs}))
    monkeypatch.setattr("sys.argv", ["x", str(path)])
    report.main()
    text = path.with_suffix(".md").read_text()
    assert "(`tpo`) | published 6.9 | 20.0 +- 10.0 (2); published 8.6 | published 6.1 | published 7.4 |" in text
    assert "(`lpo_sum`) | - | - | - | 50.0 (1) |" in text
    assert "(`tpo`) | - | 0 → 0 of 2 | - | - |" in text
    assert "(`lpo_mean`) | - | - | 2 → 2 of 3 | - |" in text
    assert "| 12.0 |" not in text and "published >95 |" in text
    assert path.with_suffix(".png").stat().st_size > 10_000
