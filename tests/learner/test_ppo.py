from dataclasses import replace

import numpy as np
import pytest
import torch
from closeness import GRADIENT, assert_near
from learner_run import STATE_SIZE
from micro_fixtures import CAMERAS, play, renewed_policy

from agent.wire.messages import Outcome
from learner.algorithm_config import PpoConfig
from learner.batch import Trajectory, build_samples
from learner.critic import ValueHead
from learner.loss import Clip
from learner.ppo_update import Judged, PpoUpdater, judge
from learner.served import ServedLimits, ServedTrainedMismatch
from learner.stopping import Stopped
from learner.update import UpdateSettings, build_optimizer

EXACT = ServedLimits(tolerance=1e-4, trusted=0.1, refused=1.0, weight_cap=2.0)
SETTINGS = UpdateSettings(
    optimizer_steps=2,
    micro_batch=4,
    clip=Clip(0.2, 0.28),
    clip_norm=1.0,
    served=EXACT,
    seed=0,
)
ANYTHING = replace(SETTINGS, served=replace(EXACT, tolerance=99))
PPO = PpoConfig(hidden_sizes=[8, 4])


@pytest.fixture
def policy(tmp_path):
    return renewed_policy(tmp_path)


@pytest.fixture
def critic():
    return ValueHead(STATE_SIZE, PPO.hidden_sizes, seed=0)


def collect(policy, outcomes, **changes):
    """Samples of one episode an outcome, 2 to 4 chunks long, and the outcomes by trajectory."""
    episodes = [
        play(policy, i, chunks=2 + i % 3, success=o == Outcome.SUCCESS, outcome=str(o), **changes)
        for i, o in enumerate(outcomes)
    ]
    trajectories = [Trajectory(i, episode, 0.0) for i, episode in enumerate(episodes)]
    return build_samples(trajectories, CAMERAS), dict(enumerate(outcomes))


MIXED = [Outcome.SUCCESS, Outcome.TIMEOUT, Outcome.FAILURE, Outcome.SUCCESS]


def updater_for(policy, critic, settings=SETTINGS, ppo=PPO, rate=1e-3, **changes):
    optimizer = build_optimizer(policy.parameters, rate, 0.0)
    optimizer.add_param_group({"params": list(critic.parameters()), "lr": ppo.value_lr})
    return PpoUpdater(policy, critic, optimizer, settings, ppo, **changes)


def parameters(policy, critic):
    return [*policy.parameters.values(), *critic.parameters()]


def gradient(policy, critic):
    return torch.cat([p.grad.flatten() for p in parameters(policy, critic)])


def with_advantages(samples, values_B, advantages_B):
    samples = replace(samples, advantages_B=advantages_B)
    return Judged(samples, values_B, values_B + advantages_B)


def weights(policy, critic):
    state = {**policy.adapter_tensors(), **critic.state_dict()}
    return {name: tensor.clone() for name, tensor in state.items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_episodes_are_judged_one_by_one_and_normalised_together(policy):
    samples, outcomes = collect(policy, MIXED)
    values_B = np.random.default_rng(0).random(len(samples))
    ppo = replace(PPO, gamma=0.9, gae_lambda=1.0)
    judged = judge(samples, values_B, outcomes, ppo)
    left_B = np.concatenate([np.arange(n)[::-1] for n in (2, 3, 4, 2)])
    wins_B = np.repeat([1.0, 0.0, 0.0, 1.0], [2, 3, 4, 2])
    returns_B = wins_B * 0.9**left_B
    np.testing.assert_allclose(judged.returns_B, returns_B)
    advantages_B = returns_B - values_B
    expected = (advantages_B - advantages_B.mean()) / (advantages_B.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(judged.samples.advantages_B, expected)
    assert len(judged.trained_rows) == len(samples)


def test_bootstrapping_leaves_out_the_last_chunk_of_episodes_cut_off_and_of_no_other(policy):
    samples, outcomes = collect(policy, MIXED)
    values_B = np.linspace(0.1, 0.9, len(samples))
    judged = judge(samples, values_B, outcomes, replace(PPO, bootstrap_at_limit=True))
    lost = sorted({*range(len(samples))} - {*judged.trained_rows.tolist()})
    assert lost == [4]  # rows 2, 3, 4 are the episode that ran out of time
    assert judged.samples.advantages_B[4] == 0.0
    gamma = PPO.gamma
    assert judged.returns_B[3] == pytest.approx(gamma * values_B[4])
    plain = judge(samples, values_B, outcomes, PPO)
    np.testing.assert_allclose(plain.returns_B[5:], judged.returns_B[5:])


def test_chunks_without_an_action_of_the_policys_own_are_not_trained_on(policy, critic):
    samples, outcomes = collect(policy, MIXED)
    mask_BK = samples.mask_BK.copy()
    mask_BK[6] = 0.0
    samples = replace(samples, mask_BK=mask_BK)
    judged = judge(samples, np.random.default_rng(0).random(len(samples)), outcomes, PPO)
    assert 6 not in judged.trained_rows
    rows = judged.trained_rows
    assert judged.samples.advantages_B[rows].mean() == pytest.approx(0.0, abs=1e-9)


def test_gradient_equals_a_finite_difference_through_policy_and_critic(policy, critic):
    samples, outcomes = collect(policy, MIXED)
    updater = updater_for(policy, critic, ppo=replace(PPO, value_coef=0.5))
    judged = judge(samples, updater.evaluate(samples).values_B, outcomes, PPO)
    rows = judged.trained_rows
    updater.accumulate_gradient(judged, rows)
    direction = [torch.sign(p.grad) for p in parameters(policy, critic)]
    slope = sum(
        (p.grad * d).sum().item()
        for p, d in zip(parameters(policy, critic), direction, strict=True)
    )

    def loss_at(step):
        with torch.no_grad():
            for p, d in zip(parameters(policy, critic), direction, strict=True):
                p.add_(d * step)
        sums, value_part = updater.accumulate_gradient(judged, rows)
        with torch.no_grad():
            for p, d in zip(parameters(policy, critic), direction, strict=True):
                p.sub_(d * step)
        return sums.loss + 0.5 * value_part

    step = 2e-5
    assert (loss_at(step) - loss_at(-step)) / (2 * step) == pytest.approx(slope, rel=0.02)


def test_the_critics_gradient_reaches_the_adapter(policy, critic):
    samples, _ = collect(policy, MIXED)
    values_B = updater_for(policy, critic).evaluate(samples).values_B
    returns_only = with_advantages(samples, values_B, np.zeros(len(samples)))
    returns_only = replace(returns_only, returns_B=values_B + 1.0)
    updater_for(policy, critic).accumulate_gradient(returns_only, np.arange(len(samples)))
    assert sum(p.grad.abs().sum() for p in policy.parameters.values()) > 0
    deaf = updater_for(policy, critic, ppo=replace(PPO, value_coef=0.0))
    deaf.accumulate_gradient(returns_only, np.arange(len(samples)))
    assert gradient(policy, critic).abs().sum() == 0


def test_gradient_does_not_depend_on_the_micro_batch_size(policy, critic):
    samples, outcomes = collect(policy, MIXED)
    judged = judge(samples, updater_for(policy, critic).evaluate(samples).values_B, outcomes, PPO)
    found = []
    for size in (4, 7):
        updater = updater_for(policy, critic, replace(SETTINGS, micro_batch=size))
        updater.accumulate_gradient(judged, judged.trained_rows)
        found.append(gradient(policy, critic))
    assert_near(*found, GRADIENT)


def test_every_executed_token_of_a_minibatch_weighs_the_same(policy, critic):
    samples, _ = collect(policy, MIXED)
    ones = with_advantages(samples, np.zeros(len(samples)), np.ones(len(samples)))
    updater = updater_for(policy, critic)
    sums, _ = updater.accumulate_gradient(ones, np.arange(len(samples)))
    assert sums.loss == pytest.approx(-1.0, abs=1e-4)  # the mean of -1 * ratio at ratio 1
    assert sums.tokens == samples.mask_BK.sum() * samples.logprobs_BKA.shape[2]


@pytest.mark.parametrize("level", ["action", "chunk"])
def test_before_the_first_step_a_coarser_ratio_only_scales_the_policys_gradient(
    policy, critic, level
):
    samples, _ = collect(policy, MIXED)
    advantages_B = np.random.default_rng(0).normal(size=len(samples))
    judged = with_advantages(samples, np.zeros(len(samples)), advantages_B)
    found = {}
    for ratio in ("token", level):
        updater = updater_for(policy, critic, ppo=replace(PPO, ratio=ratio, value_coef=0.0))
        updater.accumulate_gradient(judged, np.arange(len(samples)))
        found[ratio] = gradient(policy, critic)
    actions, dims = samples.mask_BK.sum(), samples.logprobs_BKA.shape[2]
    scale = dims if level == "action" else actions * dims / len(samples)
    assert found["token"].norm() > 1e-3
    assert_near(found[level], scale * found["token"], GRADIENT)


@pytest.mark.parametrize("level", ["action", "chunk"])
def test_an_update_with_a_coarser_ratio_makes_better_chunks_likelier(policy, critic, level):
    samples, outcomes = collect(policy, MIXED)
    ppo = replace(PPO, ratio=level)
    updater = updater_for(policy, critic, replace(SETTINGS, epochs=4), ppo=ppo)
    judged = judge(samples, updater.evaluate(samples).values_B, outcomes, ppo)
    report = updater.run(samples, outcomes, update_id=1)
    assert report.first_clip_fraction == 0.0
    assert 0 <= report.means["clip_fraction"] <= 1
    assert report.means["approx_kl"] >= 0
    with torch.no_grad():
        after = policy.score(samples, np.arange(len(samples))).logprobs_BKA.numpy()
    change_B = ((after - samples.logprobs_BKA).sum(axis=2) * samples.mask_BK).sum(axis=1)
    assert (change_B * judged.samples.advantages_B).sum() > 0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_sign_of_an_advantage_moves_its_chunk_the_right_way(policy, critic, sign):
    samples, _ = collect(policy, MIXED)
    advantages_B = np.zeros(len(samples))
    advantages_B[3] = sign
    judged = with_advantages(samples, np.zeros(len(samples)), advantages_B)
    updater = updater_for(policy, critic, ppo=replace(PPO, value_coef=0.0))
    updater.accumulate_gradient(judged, np.arange(len(samples)))
    updater.optimizer.step()
    with torch.no_grad():
        after = policy.score(samples, np.array([3] * 4)).logprobs_BKA[0].numpy()
    change = ((after - samples.logprobs_BKA[3]) * samples.mask_BK[3][:, None]).sum()
    assert sign * change > 0


def test_an_update_makes_better_chunks_likelier_and_the_critic_better(policy, critic):
    samples, outcomes = collect(policy, MIXED)
    ppo = replace(PPO, value_lr=3e-2)
    updater = updater_for(policy, critic, replace(SETTINGS, epochs=8), ppo=ppo)
    values_B = updater.evaluate(samples).values_B
    judged = judge(samples, values_B, outcomes, ppo)
    report = updater.run(samples, outcomes, update_id=1)
    assert report.first_clip_fraction == 0.0
    assert report.agreement.largest <= 1e-4
    assert report.samples == len(samples)
    with torch.no_grad():
        after = policy.score(samples, np.arange(len(samples))).logprobs_BKA.numpy()
    change_B = ((after - samples.logprobs_BKA).sum(axis=2) * samples.mask_BK).sum(axis=1)
    assert (change_B * judged.samples.advantages_B).sum() > 0
    values_after = updater_for(policy, critic, ANYTHING).evaluate(samples).values_B
    before, now = (np.square(v - judged.returns_B).mean() for v in (values_B, values_after))
    assert now < 0.7 * before
    figures = report.means
    assert figures["value_loss"] > 0
    assert figures["loss"] == pytest.approx(figures["policy_loss"] + figures["value_loss"])
    assert figures["explained_variance"] <= 1


def test_all_failures_still_train_the_critic_down(policy, critic):
    samples, outcomes = collect(policy, [Outcome.FAILURE] * 3)
    with torch.no_grad():
        critic.layers[-1].weight.fill_(1.0)
    updater = updater_for(policy, critic, replace(SETTINGS, epochs=10))
    before = updater.evaluate(samples).values_B
    report = updater.run(samples, outcomes, update_id=1)
    assert report.means["explained_variance"] <= 1
    after = updater_for(policy, critic, ANYTHING).evaluate(samples).values_B
    assert np.abs(after).mean() < np.abs(before).mean()


def test_learning_rates_of_zero_change_nothing(policy, critic):
    samples, outcomes = collect(policy, MIXED)
    before = weights(policy, critic)
    updater_for(policy, critic, ppo=replace(PPO, value_lr=0.0), rate=0.0).run(samples, outcomes, 1)
    assert same(before, weights(policy, critic))


def test_nothing_executed_changes_nothing(policy, critic):
    before = weights(policy, critic)
    report = updater_for(policy, critic).run(None, {}, update_id=1)
    assert report.samples == 0
    assert same(before, weights(policy, critic))


def test_samples_that_were_not_served_are_refused_untouched(policy, critic):
    samples, outcomes = collect(policy, MIXED)
    logprobs_BKA = samples.logprobs_BKA.copy()
    logprobs_BKA[5] += 0.01  # one chunk in the middle: all are checked
    before = weights(policy, critic)
    with pytest.raises(ServedTrainedMismatch, match=r"step 0.*v00001-aaaaaaaaaaaa"):
        updater_for(policy, critic).run(replace(samples, logprobs_BKA=logprobs_BKA), outcomes, 1)
    assert same(before, weights(policy, critic))


def test_stop_is_honoured_between_micro_batches(policy, critic):
    samples, outcomes = collect(policy, MIXED)
    with pytest.raises(Stopped):
        updater_for(policy, critic, should_stop=lambda: True).run(samples, outcomes, 1)
