"""CRL-VLA: both terms by hand and by finite differences, the step between tasks, no weight."""

import dataclasses

import numpy as np
import pytest
import torch
from learner_run import make_config
from micro_fixtures import CAMERAS, INSTRUCTIONS, play, renewed_policy
from test_ppo import ANYTHING, MIXED, PPO, collect, same, updater_for, weights

from agent.wire.errors import ConfigError
from learner.algorithm_config import AlgorithmConfig, PpoConfig
from learner.batch import Trajectory, build_samples
from learner.continual.crl_vla import CrlVla
from learner.continual.settings import ContinualConfig, CrlVlaConfig
from learner.dual_critic import DualCritic
from learner.update import clear_gradient

UPDATE, STEP = 7, 1


class Row:
    """As much of a stored episode as is asked for."""

    def __init__(self, episode):
        self.episode = episode


class PlayedPast:
    """Two episodes of each task in place of a learner's record."""

    def __init__(self, policy):
        self.tasks = [
            [
                dataclasses.replace(e, meta=dataclasses.replace(e.meta, task=task))
                for e in (play(policy, 10 * i + k, instruction=INSTRUCTIONS[i]) for k in range(2))
            ]
            for i, task in enumerate("ab")
        ]

    def last_rows(self, task_index):
        return [Row(episode) for episode in self.tasks[task_index]]

    def read_whole(self, rows):
        return [row.episode for row in rows]

    def samples(self, episodes):
        return build_samples([Trajectory(i, e, 0.0) for i, e in enumerate(episodes)], CAMERAS)


@pytest.fixture(params=["v", "q"])
def kind(request):
    return request.param


@pytest.fixture(params=["oft-discrete", "oft-l1"])
def policy(tmp_path, request):
    return renewed_policy(tmp_path, variant=request.param)


def make(policy, kind, past=None, **changes):
    settings = {"kl_weight": 0.5, "value_weight": 2.0, "batch_size": 6, "chunks_per_task": 5}
    crl_vla = CrlVlaConfig(critic=kind, **{**settings, **changes})
    algorithm = {"method": "ppo", "ppo": PpoConfig(hidden_sizes=[8, 4]), "resample_degenerate": 0}
    config = make_config(ContinualConfig("crl-vla", crl_vla=crl_vla), **algorithm)
    critic = DualCritic(policy, [8, 4], 0, kind == "q", crl_vla.draws)
    with torch.no_grad():
        critic.monte_carlo_head.layers[-1].weight.mul_(20)
    return CrlVla(config, crl_vla, policy, critic, past or PlayedPast(policy)), critic


def move(policy, size=0.05):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def gradient_of(method, policy, critic):
    clear_gradient([*policy.parameters.values(), *critic.trained])
    figures = method.add_gradient(UPDATE, STEP)
    return figures, torch.cat([p.grad.flatten() for p in policy.parameters.values()])


def test_before_the_second_task_there_is_no_term(policy, kind):
    method, critic = make(policy, kind)
    assert method.before_task(0, "base") == "base"
    figures, gradient = gradient_of(method, policy, critic)
    assert figures == {"memory_chunks": 0.0, "memory_mb": 0.0}
    assert not gradient.any()
    assert method.state() == {}


def test_after_the_step_between_tasks_nothing_has_drifted_yet(policy, kind):
    method, critic = make(policy, kind)
    learned = {n: t.clone() for n, t in critic.monte_carlo_head.state_dict().items()}
    assert method.before_task(1, "v1") == "v1"
    assert same(learned, critic.goal_head.state_dict())
    assert not same(learned, critic.monte_carlo_head.state_dict())
    assert np.abs(method.old_values_B).max() > 0.01
    figures, gradient = gradient_of(method, policy, critic)
    assert figures["memory_chunks"] == 5  # of six
    move(policy)
    drifted, steep = gradient_of(method, policy, critic)
    for name in ("crl_kl", "crl_value_loss", "crl_value_drift"):
        assert figures[name] < 1e-4 * drifted[name], name
    assert gradient.abs().max() < 1e-3 * steep.abs().max()


def test_the_terms_are_what_they_say_by_hand(policy, kind):
    method, critic = make(policy, kind)
    method.before_task(1, "v1")
    memory = method.memory.rows
    drawn = method.memory.draw(6, 0, UPDATE, STEP)

    @torch.no_grad()
    def look():
        """Log-probabilities of everything or means and spread, and values, chunk by chunk."""
        found = []
        for row in drawn:
            scores = policy.score(memory, np.array([row]))
            answers = scores.output.means_BKA
            if answers is None:
                answers = (scores.output.logits_BKAV / 1.6).log_softmax(-1)
            found.append((answers, critic.remember(scores, memory, np.array([row])).item()))
        answers, values = zip(*found, strict=True)
        return torch.cat(answers), np.array(values)

    old, old_values = look()
    move(policy)
    new, new_values = look()
    if old.dim() == 4:
        kl = (old.exp() * (old - new)).sum(-1).mean()
    else:
        spread = policy.parameters.get("action_log_scale", policy._log_scale_A).exp() * 1.6
        gap = (old - new).abs() / spread
        kl = (gap + torch.exp(-gap) - 1).mean()
    figures = method.add_gradient(UPDATE, STEP)
    error = new_values - old_values
    assert np.abs(error).mean() > 1e-3
    assert figures["crl_kl"] == pytest.approx(kl.item(), rel=1e-3)
    assert figures["crl_value_loss"] == pytest.approx(np.square(error).mean(), rel=1e-3)
    assert figures["crl_value_drift"] == pytest.approx(np.abs(error).mean(), rel=1e-3)


@pytest.mark.parametrize("held", ["kl_weight", "value_weight"])
def test_each_terms_gradient_equals_a_finite_difference_and_reaches_no_head(policy, kind, held):
    weights_of = {"kl_weight": 0.0, "value_weight": 0.0, held: 3.0}
    method, critic = make(policy, kind, **weights_of)
    method.before_task(1, "v1")
    move(policy, 0.02)
    _, gradient = gradient_of(method, policy, critic)
    assert all(p.grad is None for p in critic.goal_head.parameters())
    assert not any(p.grad.any() for p in critic.monte_carlo_head.parameters())
    direction = [torch.sign(p.grad) for p in policy.parameters.values()]
    figure = {"kl_weight": "crl_kl", "value_weight": "crl_value_loss"}[held]

    def loss_at(step):
        with torch.no_grad():
            for p, d in zip(policy.parameters.values(), direction, strict=True):
                p.add_(d * step)
        loss = 3.0 * method.add_gradient(UPDATE, STEP)[figure]
        with torch.no_grad():
            for p, d in zip(policy.parameters.values(), direction, strict=True):
                p.sub_(d * step)
        return loss

    slope = gradient.abs().sum().item()
    step = min(1e-4, 0.01 / slope)
    found = (loss_at(step) - loss_at(-step)) / (2 * step)
    assert found == pytest.approx(slope, rel=0.02)


def test_the_frozen_head_and_the_weights_pull_values_and_policy_back(policy, kind):
    method, critic = make(policy, kind)
    method.before_task(1, "v1")
    frozen = {n: t.clone() for n, t in critic.goal_head.state_dict().items()}
    move(policy)
    optimizer = torch.optim.SGD([*policy.parameters.values(), *critic.trained], lr=2e-3)
    before, _ = gradient_of(method, policy, critic)
    for _ in range(10):
        gradient_of(method, policy, critic)
        optimizer.step()
    after, _ = gradient_of(method, policy, critic)
    loss = [0.5 * f["crl_kl"] + 2.0 * f["crl_value_loss"] for f in (before, after)]
    assert loss[1] < loss[0]
    assert same(frozen, critic.goal_head.state_dict())


def test_with_each_task_all_answers_are_renewed_so_that_drift_begins_at_zero(policy, kind):
    method, critic = make(policy, kind)
    method.before_task(1, "v1")
    first = method.old_values_B.copy(), method.memory.rows.targets_BX.copy()
    move(policy)
    with torch.no_grad():
        critic.monte_carlo_head.layers[-1].weight.mul_(10)
    method.before_task(2, "v2")
    assert method.memory.tasks == ["a", "b"]
    assert len(method.old_values_B) == len(method.memory.rows) == 10
    assert np.abs(method.old_values_B[:5] - first[0]).max() > 1e-3
    assert np.abs(method.memory.rows.targets_BX[:5] - first[1]).max() > 1e-3
    figures, _ = gradient_of(method, policy, critic)
    move(policy)
    drifted, _ = gradient_of(method, policy, critic)
    for name in ("crl_kl", "crl_value_drift"):
        assert figures[name] < 1e-4 * drifted[name], name


def test_state_brings_everything_back(policy, kind):
    method, critic = make(policy, kind)
    method.before_task(1, "v1")
    move(policy)
    again, other = make(policy, kind)
    again.load_state(method.state())
    other.load_state_dict(critic.state_dict())
    one, two = gradient_of(method, policy, critic), gradient_of(again, policy, other)
    assert one[0] == two[0]
    assert torch.equal(one[1], two[1])
    again.load_state({})
    assert again.state() == {}


def test_without_weights_it_is_ppo_with_the_same_critic_to_the_last_bit(policy, kind):
    start, found = policy.adapter_tensors(), []
    ppo = dataclasses.replace(PPO, value_lr=1e-2)
    for is_held in (True, False):
        policy.load_adapter(start)
        method, critic = make(policy, kind, kl_weight=0.0, value_weight=0.0)
        method.before_task(1, "v1")
        move(policy, 0.01)  # there is something that it could pull back
        samples, outcomes = collect(policy, MIXED)
        hook = {"add_gradient": method.add_gradient} if is_held else {}
        optimizer = updater_for(policy, critic.monte_carlo_head).optimizer
        updater = updater_for(policy, critic.monte_carlo_head, ANYTHING, ppo, **hook)
        updater.critic, updater.optimizer = critic, optimizer
        report = updater.run(samples, outcomes, 1)
        assert ("crl_kl" in report.means) == is_held
        found.append(weights(policy, critic))
    assert same(*found)
    assert not same(found[0], start)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "grpo", "ppo": None}, "take algorithm=ppo-nano"),
        ({"fresh_optimizer_per_task": False}, "fresh_optimizer_per_task=true"),
    ],
)
def test_without_ppo_or_with_an_old_optimiser_it_is_refused(change, message):
    algorithm = {"method": "ppo", "ppo": PpoConfig(), "resample_degenerate": 0, **change}
    assert AlgorithmConfig(**algorithm)
    with pytest.raises(ConfigError, match=message):
        make_config(ContinualConfig("crl-vla", crl_vla=CrlVlaConfig()), **algorithm)


@pytest.mark.parametrize(
    "change", [{"critic": "a"}, {"kl_weight": -1}, {"draws": 0}, {"batch_size": 0}]
)
def test_impossible_settings_are_refused_by_name(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        CrlVlaConfig(**change)
