"""CRL-VLA's critic: what its heads read, what is frozen, and the baseline of the Q variant."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from closeness import assert_near
from micro_fixtures import BINS, INSTRUCTIONS, A, K, play, renewed_policy

from agent.wire.messages import Outcome
from learner.algorithm_config import PpoConfig
from learner.batch import Trajectory, build_samples
from learner.critic import ValueHead
from learner.dual_critic import DualCritic, embed_goal, flat_actions
from learner.ppo_update import judge
from learner.randomness import keyed_rng

ROWS, SEED, DRAWS, H = np.array([0, 1, 2]), 3, 2, 16


@pytest.fixture(params=["v", "q"])
def kind(request):
    return request.param


@pytest.fixture
def policy(tmp_path):
    return renewed_policy(tmp_path)


def critic_for(policy, kind, draws=DRAWS):
    critic = DualCritic(policy, [8, 4], SEED, kind == "q", draws)
    with torch.no_grad():  # as if it had learned something
        critic.monte_carlo_head.layers[-1].weight.add_(0.5)
    return critic


def samples_of(policy, instruction=INSTRUCTIONS[0]):
    episode = play(policy, 0, instruction=instruction)
    return build_samples([Trajectory(0, episode, 0.0)], policy.model.cameras)


def by_hand(critic, policy, samples, kind, choices_BKA):
    scores = policy.score(samples, ROWS)
    encoded = policy.model.prompts.tokenizer.encode(INSTRUCTIONS[0], add_special_tokens=False)
    table = policy.network.word_embedding.weight
    goal = sum(table[i] for i in encoded.ids) / len(encoded.ids)
    goal = goal / goal.square().mean().sqrt()
    parts = [scores.state_BH, goal.expand(len(ROWS), H)]
    if kind == "q":
        centres = np.linspace(-1, 1, BINS)
        centres = (centres[:-1] + centres[1:]) / 2  # the lowest two tokens decode alike
        index = np.minimum(BINS - 1 - choices_BKA, BINS - 2)
        parts.append(torch.tensor(centres[index].reshape(len(ROWS), K * A), dtype=torch.float32))
    return critic.monte_carlo_head(torch.cat(parts, 1))


@torch.no_grad()
def test_a_head_reads_the_state_the_goal_and_for_q_the_chosen_actions(policy, kind):
    critic, samples = critic_for(policy, kind), samples_of(policy)
    expected = by_hand(critic, policy, samples, kind, samples.choices_BKA)
    found = critic.predict(policy.score(samples, ROWS), samples, ROWS)
    assert_near(found, expected)


@torch.no_grad()
def test_q_depends_on_what_was_chosen_but_not_on_what_was_executed_and_v_on_neither(policy, kind):
    critic, samples = critic_for(policy, kind), samples_of(policy)
    scores = policy.score(samples, ROWS)
    found = critic.predict(scores, samples, ROWS)
    cut = replace(samples, mask_BK=np.zeros_like(samples.mask_BK))
    assert torch.equal(critic.predict(scores, cut, ROWS), found)
    other = replace(samples, choices_BKA=BINS - 1 - samples.choices_BKA)
    assert torch.equal(critic.predict(scores, other, ROWS), found) == (kind == "v")


def test_goals_differ_and_have_unit_size(policy):
    one, other = (embed_goal(policy.model, text) for text in INSTRUCTIONS)
    assert not one.requires_grad
    assert one.square().mean().item() == pytest.approx(1.0, abs=1e-3)
    assert (one - other).norm() > 0.1
    assert torch.equal(one, embed_goal(policy.model, INSTRUCTIONS[0].upper()))


def test_normalised_choices_stay_as_they_are():
    choices = np.random.default_rng(0).normal(size=(2, K, A)).astype(np.float32)
    assert torch.equal(flat_actions(choices, BINS), torch.from_numpy(choices.reshape(2, K * A)))


@torch.no_grad()
@pytest.mark.parametrize("variant", ["oft-discrete", "oft-l1", "openvla", "cnn"])
def test_qs_baseline_is_its_mean_over_draws_from_the_policy(tmp_path, variant):
    policy = renewed_policy(tmp_path, variant=variant)
    critic, samples = critic_for(policy, "q"), samples_of(policy)
    scores = policy.score(samples, ROWS)
    predicted = critic.predict(scores, samples, ROWS)
    found = critic.baseline(predicted, scores, samples, ROWS)
    stream = f"critic_draws/{samples.version_B[0]}/{samples.trajectory_B[0]}"
    rng = keyed_rng(SEED, stream, int(samples.step_index_B[0]))
    drawn = [policy.draw(samples, ROWS, rng) for _ in range(DRAWS)]
    each = [critic.predict(scores, replace(samples, choices_BKA=d), ROWS) for d in drawn]
    assert_near(found, sum(each) / DRAWS)
    assert not torch.allclose(found, predicted)
    # What was recorded has no part in it, but for the state.
    assert torch.equal(critic.baseline(predicted + 1, scores, samples, ROWS), found)


@torch.no_grad()
def test_qs_draws_do_not_follow_the_ids_that_a_server_happened_to_mint(policy):
    critic, samples = critic_for(policy, "q"), samples_of(policy)
    other = replace(samples, episode_id_B=np.full(len(samples), "another run's"))
    scores = policy.score(samples, ROWS)
    predicted = critic.predict(scores, samples, ROWS)
    found = critic.baseline(predicted, scores, samples, ROWS)
    assert torch.equal(critic.baseline(predicted, scores, other, ROWS), found)
    later = replace(samples, version_B=np.full(len(samples), "v00009-aaaaaaaaaaaa"))
    assert not torch.equal(critic.baseline(predicted, scores, later, ROWS), found)


@torch.no_grad()
def test_vs_baseline_is_its_prediction(policy):
    critic, samples = critic_for(policy, "v"), samples_of(policy)
    scores = policy.score(samples, ROWS)
    predicted = critic.predict(scores, samples, ROWS)
    assert torch.equal(critic.baseline(predicted, scores, samples, ROWS), predicted)


def test_between_tasks_what_was_learned_is_frozen_and_a_fresh_head_learns(policy, kind):
    critic = critic_for(policy, kind)
    learned = {n: t.clone() for n, t in critic.monte_carlo_head.state_dict().items()}
    critic.begin_task(2)
    frozen, fresh = critic.goal_head.state_dict(), critic.monte_carlo_head.state_dict()
    size = 2 * H + (K * A if kind == "q" else 0)
    expected = ValueHead(size, [8, 4], SEED, task_index=2).state_dict()
    assert all(torch.equal(frozen[name], learned[name]) for name in learned)
    assert all(torch.equal(fresh[name], expected[name]) for name in learned)
    first = ValueHead(size, [8, 4], SEED).state_dict()
    assert not torch.equal(first["layers.0.weight"], expected["layers.0.weight"])
    trained = {id(parameter) for parameter in critic.trained}
    assert trained == {id(parameter) for parameter in critic.monte_carlo_head.parameters()}


def test_a_monte_carlo_critics_target_is_the_return_whatever_it_says_itself(policy):
    episodes = [play(policy, i, chunks=3, success=i == 0) for i in range(3)]
    samples = build_samples(
        [Trajectory(i, e, 0.0) for i, e in enumerate(episodes)], policy.model.cameras
    )
    outcomes = {0: Outcome.SUCCESS, 1: Outcome.FAILURE, 2: Outcome.TIMEOUT}
    values_B = np.random.default_rng(0).random(9)
    ppo = PpoConfig(gamma=0.9, gae_lambda=0.5, bootstrap_at_limit=True)
    found = judge(samples, values_B, outcomes, ppo, monte_carlo=True)
    last = values_B[8]  # where an episode is cut off, the rest is what the critic expects there
    expected = [0.81, 0.9, 1.0, 0.0, 0.0, 0.0, 0.81 * last, 0.9 * last, last]
    np.testing.assert_allclose(found.returns_B, expected, atol=1e-12)
    plain = judge(samples, values_B, outcomes, ppo)
    np.testing.assert_array_equal(found.samples.advantages_B, plain.samples.advantages_B)
    assert np.abs(found.returns_B - plain.returns_B).max() > 0.05
