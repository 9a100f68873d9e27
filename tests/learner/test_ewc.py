"""Elastic weight consolidation: Fisher information, penalty and its gradient."""

import dataclasses

import numpy as np
import pytest
import torch
from micro_fixtures import CAMERAS, micro_policy, play

from learner.batch import Trajectory, build_samples
from learner.continual.ewc import Ewc, fisher_information, quadratic_penalty
from learner.continual.settings import EwcConfig
from learner.randomness import keyed_rng


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return micro_policy(tmp_path_factory.mktemp("ewc"))


@pytest.fixture(scope="module")
def samples(policy):
    return build_samples([Trajectory(i, play(policy, i), 0.0) for i in range(2)], CAMERAS)


def test_the_penalty_is_the_weighted_square_of_what_moved():
    parameters = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    anchor = {"a": torch.tensor([0.0, 2.5]), "b": torch.tensor([[5.0]])}
    fisher = {"a": torch.tensor([2.0, 4.0]), "b": torch.tensor([[0.5]])}
    # 2 * 1^2 + 4 * 0.5^2 + 0.5 * 2^2
    assert quadratic_penalty(parameters, anchor, fisher).item() == pytest.approx(5.0)


def test_the_penalty_pulls_back_by_twice_the_fisher_information():
    moved = torch.tensor([1.0, 2.0], requires_grad=True)
    anchor, fisher = {"a": torch.tensor([0.5, 2.5])}, {"a": torch.tensor([3.0, 4.0])}
    quadratic_penalty({"a": moved}, anchor, fisher).backward()
    assert moved.grad.tolist() == pytest.approx([2 * 3 * 0.5, -2 * 4 * 0.5])


def test_fisher_information_is_the_mean_of_each_chunks_squared_gradient(policy, samples):
    rows = np.array([0, 2])
    found = fisher_information(policy, samples, rows, keyed_rng(0, "test", 0))
    rng, expected = keyed_rng(0, "test", 0), 0.0
    name, parameter = next((n, p) for n, p in policy.parameters.items() if "lora_B" in n)
    place, step = (0, 0), 1e-3
    for row in rows:
        one = np.array([row])
        choices = policy.draw(samples, one, rng)
        sums = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[place] += sign * step
                logprobs = policy.score_choices(samples, one, choices).logprobs_BKA
                parameter[place] -= sign * step
            sums.append((logprobs[0] * torch.from_numpy(samples.mask_BK[row])[:, None]).sum())
        expected += ((sums[0] - sums[1]) / (2 * step)).item() ** 2 / len(rows)
    assert found[name][place].item() == pytest.approx(expected, rel=0.02, abs=1e-5)
    assert expected > 1e-4


def test_drawn_actions_follow_the_policy_and_the_key(policy, samples):
    rows = np.zeros(400, dtype=np.int64)
    drawn = policy.draw(samples, rows, keyed_rng(0, "draw", 0))
    again = policy.draw(samples, rows, keyed_rng(0, "draw", 0))
    assert (drawn == again).all()
    scores = policy.score_choices(samples, rows, drawn)
    # What a distribution's own draws score on average is its negative entropy.
    spread = scores.logprobs_BKA.mean(0) + scores.entropy_BKA.mean(0)
    error = scores.logprobs_BKA.std(0) / len(rows) ** 0.5
    assert (spread.abs() < 5 * error).all()


class OneExecuted:
    """A past in which the actions of one chunk alone were executed."""

    def __init__(self, samples, row):
        mask_BK = np.zeros_like(samples.mask_BK)
        mask_BK[row] = 1.0
        self.samples = dataclasses.replace(samples, mask_BK=mask_BK)

    def last_samples(self, task_index):
        return self.samples


@pytest.mark.parametrize("row", [1, 4])
def test_chunks_of_which_nothing_was_executed_say_nothing_of_importance(policy, samples, row):
    ewc = Ewc(EwcConfig(samples=3), policy, OneExecuted(samples, row), seed=0)
    assert ewc.before_task(1, "v1") == "v1"
    rng = keyed_rng(0, "ewc", 0)
    rng.choice([row], size=1, replace=False)
    expected = fisher_information(policy, ewc._past.samples, np.array([row]), rng)
    assert all(torch.equal(found, expected[name]) for name, found in ewc.fisher.items())
    assert any(found.any() for found in ewc.fisher.values())
