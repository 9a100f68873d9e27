"""One DPO update through the micro policy."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from closeness import GRADIENT, assert_near
from micro_fixtures import CAMERAS, play, renewed_policy
from test_update import SETTINGS, adapter_bytes, gradient

from learner.batch import Trajectory, build_samples
from learner.dpo_update import DpoUpdater
from learner.served import ServedLimits, ServedTrainedMismatch
from learner.stopping import Stopped
from learner.update import build_optimizer

BETA = 0.1
ROUNDED = ServedLimits(tolerance=None, trusted=0.1, refused=1.0, weight_cap=2.0)


@pytest.fixture
def policy(tmp_path):
    return renewed_policy(tmp_path)


def pairs_of(policy, count):
    """Samples of `count` pairs: trajectory 2p won, 2p + 1 lost; 2 to 4 chunks long."""
    episodes = [play(policy, i, chunks=2 + i % 3, success=i % 2 == 0) for i in range(2 * count)]
    return build_samples([Trajectory(i, e, 0.0) for i, e in enumerate(episodes)], CAMERAS)


def updater_for(policy, settings=SETTINGS, rate=1e-2, beta=BETA, **changes):
    optimizer = build_optimizer(policy.parameters, rate, 0.0)
    return DpoUpdater(policy, optimizer, settings, beta, **changes)


def drift(samples, scale=0.05):
    """As if the policy had moved since: other recorded log-probabilities."""
    noise = np.random.default_rng(0).normal(size=samples.logprobs_BKA.shape) * scale
    return dataclasses.replace(
        samples, logprobs_BKA=(samples.logprobs_BKA + noise).astype(np.float32)
    )


def margins_of(policy, samples, count):
    """Each pair's margin by its definition, with gradient through whole trajectories."""
    scores = policy.score(samples, np.arange(len(samples)))
    log_ratio = scores.logprobs_BKA - torch.from_numpy(samples.logprobs_BKA)
    executed = log_ratio * torch.from_numpy(samples.mask_BK)[:, :, None]
    total = [executed[samples.trajectory_B == i].sum() for i in range(2 * count)]
    return torch.stack([total[2 * p] - total[2 * p + 1] for p in range(count)])


@pytest.mark.parametrize("size", [4, 7])
def test_two_passes_give_the_gradient_of_the_whole(policy, size):
    """Against autograd over all trajectories at once, away from where the margins are 0."""
    samples = drift(pairs_of(policy, 3))
    updater = updater_for(policy, dataclasses.replace(SETTINGS, micro_batch=size), beta=0.5)
    sums = updater.accumulate_gradient(samples, np.array([2, 0]))
    found = gradient(policy).clone()
    margins_P = margins_of(policy, samples, 3)[[2, 0]]
    assert margins_P.abs().min() > 0.05
    loss = -F.logsigmoid(0.5 * margins_P).mean()
    for parameter in policy.parameters.values():
        parameter.grad = None
    loss.backward()
    assert gradient(policy).norm() > 0.1
    assert_near(found, gradient(policy), GRADIENT)
    assert sums.loss == pytest.approx(loss.item(), rel=1e-4)


def test_gradient_equals_a_finite_difference_through_the_model(policy):
    samples, members = drift(pairs_of(policy, 2)), np.arange(2)
    updater = updater_for(policy)
    updater.accumulate_gradient(samples, members)
    direction = {name: torch.sign(p.grad) for name, p in policy.parameters.items()}
    slope = sum((policy.parameters[n].grad * d).sum().item() for n, d in direction.items())

    def loss_at(step):
        with torch.no_grad():
            for name, p in policy.parameters.items():
                p.add_(direction[name] * step)
        sums = updater.accumulate_gradient(samples, members)
        with torch.no_grad():
            for name, p in policy.parameters.items():
                p.sub_(direction[name] * step)
        return sums.loss

    step = 2e-5
    assert (loss_at(step) - loss_at(-step)) / (2 * step) == pytest.approx(slope, rel=0.02)


def test_margins_begin_at_zero_and_what_was_preferred_becomes_likelier(policy):
    samples = pairs_of(policy, 3)
    updater = updater_for(policy, dataclasses.replace(SETTINGS, optimizer_steps=1), rate=1e-3)
    report = updater.run(samples, 3, update_id=1)
    assert report.means["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert report.means["margin"] == pytest.approx(0.0, abs=1e-3)
    assert report.means["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert report.agreement.largest <= 1e-4
    assert report.samples == len(samples)
    with torch.no_grad():
        assert margins_of(policy, samples, 3).mean() > 0.1


def test_further_steps_report_how_far_apart_the_pairs_are(policy):
    settings = dataclasses.replace(SETTINGS, optimizer_steps=1, epochs=4)
    report = updater_for(policy, settings).run(pairs_of(policy, 2), 2, update_id=1)
    assert report.means["margin"] > 0
    assert report.means["preferred"] == 1.0
    assert report.means["loss"] < np.log(2)
    assert report.means["approx_kl"] > 0


def test_actions_that_were_not_executed_have_no_part(policy):
    samples = drift(pairs_of(policy, 2))
    updater = updater_for(policy)
    updater.accumulate_gradient(samples, np.arange(2))
    before = gradient(policy).clone()
    logprobs_BKA = samples.logprobs_BKA.copy()
    logprobs_BKA[samples.mask_BK == 0] -= 3.0
    assert (samples.mask_BK == 0).any()
    sums = updater.accumulate_gradient(
        dataclasses.replace(samples, logprobs_BKA=logprobs_BKA), np.arange(2)
    )
    assert torch.equal(gradient(policy), before)
    assert sums.tokens == samples.mask_BK.sum() * 7


def test_learning_rate_zero_changes_nothing(policy):
    before = adapter_bytes(policy)
    updater_for(policy, rate=0.0).run(pairs_of(policy, 2), 2, update_id=1)
    assert adapter_bytes(policy) == before


def test_no_pair_at_all_still_takes_the_fixed_number_of_steps(policy):
    updater, before = updater_for(policy), adapter_bytes(policy)
    report = updater.run(None, 0, update_id=1)
    assert (report.samples, report.grad_norm) == (0, 0.0)
    assert "margin" not in report.means
    state = updater.optimizer.state[next(iter(policy.parameters.values()))]
    assert state["step"].item() == SETTINGS.optimizer_steps
    assert adapter_bytes(policy) == before


def test_fewer_pairs_than_steps_leave_steps_without_a_gradient(policy):
    report = updater_for(policy).run(pairs_of(policy, 1), 1, update_id=1)
    assert report.grad_norm > 0
    assert report.means["loss"] == pytest.approx(np.log(2) / 2, abs=1e-4)


def test_samples_that_were_not_served_are_refused_untouched(policy):
    before = adapter_bytes(policy)
    samples = drift(pairs_of(policy, 2), scale=0.01)
    with pytest.raises(ServedTrainedMismatch, match=r"v00001-aaaaaaaaaaaa"):
        updater_for(policy).run(samples, 2, update_id=1)
    assert adapter_bytes(policy) == before


def test_where_rounding_parts_server_and_learner_the_learner_is_the_reference(policy):
    settings = dataclasses.replace(SETTINGS, served=ROUNDED, optimizer_steps=1)
    samples = drift(pairs_of(policy, 3), scale=0.2)
    report = updater_for(policy, settings).run(samples, 3, update_id=1)
    assert report.agreement.needs_correction
    assert report.means["margin"] == pytest.approx(0.0, abs=1e-3)


def test_stop_is_honoured_between_micro_batches(policy):
    with pytest.raises(Stopped):
        updater_for(policy, should_stop=lambda: True).run(pairs_of(policy, 1), 1, update_id=1)
