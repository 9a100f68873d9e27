"""Rounding apart is corrected, anything else is refused, and float32 tolerates nothing."""

import dataclasses

import numpy as np
import pytest
import torch
from micro_fixtures import CAMERAS, micro_policy, renewed_policy
from test_update import group_of

from agent.model.distributions import TokenDistribution
from agent.model.network import ActionOutput
from learner.batch import build_samples
from learner.loss import Clip
from learner.policy import Scores
from learner.randomness import keyed_rng
from learner.served import ServedCheck, ServedLimits, ServedTrainedMismatch, correct
from learner.update import Updater, UpdateSettings, build_optimizer

ROUNDED = ServedLimits(tolerance=None, trusted=0.1, refused=1.0, weight_cap=2.0)


@pytest.fixture
def policy(tmp_path):
    return renewed_policy(tmp_path)


@pytest.fixture
def samples(policy):
    return build_samples(group_of(policy, [1, 0, 0, 1]), CAMERAS)


def moved(samples, size, seed=0):
    """Recorded log-probabilities moved by +-`size` nats."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], samples.logprobs_BKA.shape)
    return dataclasses.replace(
        samples, logprobs_BKA=(samples.logprobs_BKA + size * signs).astype(np.float32)
    )


def updater_for(policy, limits=ROUNDED, steps=2):
    settings = UpdateSettings(
        optimizer_steps=steps, micro_batch=4, clip=Clip(0.2, 0.28), clip_norm=1.0, served=limits,
        seed=0,
    )  # fmt: skip
    return Updater(policy, build_optimizer(policy.parameters, 1e-2, 0.0), settings)


def observe(samples, recomputed, limits=ROUNDED):
    check = ServedCheck(limits)
    zeros = torch.zeros(len(samples), 1)
    output, distribution = ActionOutput(zeros, None, zeros), TokenDistribution(zeros, 1.0)
    scores = Scores(torch.from_numpy(recomputed), zeros, zeros, output, distribution)
    check.observe(samples, np.arange(len(samples)), scores)
    return check.conclude()


def test_the_quantile_decides_between_trusting_correcting_and_refusing(samples):
    recomputed = samples.logprobs_BKA
    assert not observe(moved(samples, 0.05), recomputed).needs_correction
    assert observe(moved(samples, 0.2), recomputed).needs_correction
    with pytest.raises(ServedTrainedMismatch, match="99% quantile"):
        observe(moved(samples, 1.5), recomputed)
    one_far_off = samples.logprobs_BKA.copy()
    one_far_off[0, 0, 0] += 5.0  # a single token says nothing about the rest
    found = observe(samples, one_far_off)
    assert (found.needs_correction, found.median) == (False, 0.0)
    assert found.largest == pytest.approx(5.0, rel=1e-5)
    with pytest.raises(ServedTrainedMismatch):
        observe(samples, np.full_like(recomputed, np.nan))


def test_float32_is_held_to_its_tolerance(samples):
    exact = dataclasses.replace(ROUNDED, tolerance=1e-4)
    with pytest.raises(ServedTrainedMismatch, match=r"at most 0\.0001"):
        observe(moved(samples, 0.001), samples.logprobs_BKA, exact)
    assert not observe(moved(samples, 0.00005), samples.logprobs_BKA, exact).needs_correction


def test_importance_weights_are_truncated_ratios(samples):
    served = moved(samples, 0.5)
    corrected = correct(served, samples.logprobs_BKA, weight_cap=1.2)
    np.testing.assert_array_equal(corrected.logprobs_BKA, samples.logprobs_BKA)
    ratio = np.exp(samples.logprobs_BKA - served.logprobs_BKA)
    np.testing.assert_allclose(corrected.importance_BKA, np.minimum(ratio, 1.2), rtol=1e-5)
    assert {float(v) for v in np.unique(samples.importance_BKA)} == {1.0}


def test_what_has_one_ratio_has_one_importance_weight(samples):
    served = moved(samples, 0.1)
    log_ratio = samples.logprobs_BKA.astype(np.float64) - served.logprobs_BKA
    by_action = correct(served, samples.logprobs_BKA, 1.2, "action").importance_BKA
    executed = log_ratio * samples.mask_BK[..., None]
    expected = np.minimum(np.exp(executed.sum(axis=2, keepdims=True)), 1.2)
    np.testing.assert_allclose(by_action, np.broadcast_to(expected, by_action.shape), rtol=1e-5)
    by_chunk = correct(served, samples.logprobs_BKA, 1.2, "chunk").importance_BKA
    expected = np.minimum(np.exp(executed.sum(axis=(1, 2), keepdims=True)), 1.2)
    np.testing.assert_allclose(by_chunk, np.broadcast_to(expected, by_chunk.shape), rtol=1e-5)
    assert 1 < len(np.unique(by_chunk)) <= len(samples)


def test_a_corrected_step_weighs_each_token_by_its_ratio(policy, samples):
    served = moved(samples, 0.3)
    updater = updater_for(policy, steps=1)
    corrected = correct(served, samples.logprobs_BKA, ROUNDED.weight_cap)
    sums = updater.accumulate_gradient(corrected, np.arange(4))
    # At the first step the proximal ratio is 1: the loss is -advantage times the weight.
    weight = np.minimum(np.exp(samples.logprobs_BKA - served.logprobs_BKA), ROUNDED.weight_cap)
    each = -samples.advantages_B[:, None, None] * weight * samples.mask_BK[..., None]
    expected = (each * samples.weights_B[:, None, None]).sum() / 4
    assert sums.loss == pytest.approx(expected, rel=1e-4)
    assert sums.clipped == 0


def test_an_update_corrects_by_itself_and_says_so(policy, samples):
    before = policy.adapter_files()
    report = updater_for(policy).run(moved(samples, 0.2), 4, update_id=1)
    assert report.agreement.needs_correction
    assert report.first_clip_fraction == 0
    assert report.agreement.p99 == pytest.approx(0.2, rel=5e-3)
    assert policy.adapter_files() != before


def test_what_only_the_first_minibatch_shows_is_corrected_too(policy, samples):
    served, rng = moved(samples, 0.5), keyed_rng(0, "verify", 1)
    looked_at = [rng.choice(np.flatnonzero(samples.trajectory_B == i)) for i in range(4)]
    served.logprobs_BKA[looked_at] = samples.logprobs_BKA[looked_at]
    report = updater_for(policy, steps=1).run(served, 4, update_id=1)
    assert report.agreement.needs_correction
    assert report.first_clip_fraction == 0  # exp(0.5) and exp(-0.5) are far outside the clip


def test_a_bfloat16_base_learns(tmp_path):
    policy = micro_policy(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in policy.parameters.values()} == {torch.float32}
    served = build_samples(group_of(policy, [1, 0, 0, 1]), CAMERAS)
    before = policy.adapter_files()
    report = updater_for(policy).run(served, 4, update_id=1)
    assert report.agreement.largest < ROUNDED.refused
    assert np.isfinite(report.grad_norm)
    assert policy.adapter_files() != before
