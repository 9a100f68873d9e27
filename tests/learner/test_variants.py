"""One learning step of every variant, against hand computation and finite differences."""

import dataclasses

import numpy as np
import pytest
import torch
from closeness import REFERENCE, assert_near
from micro_fixtures import micro_policy, play, renewed_policy

from agent.model.lora import AdapterError
from learner.batch import Trajectory, build_samples
from learner.loss import Clip
from learner.policy import LOG_SCALE
from learner.served import ServedLimits, ServedTrainedMismatch
from learner.update import Updater, UpdateSettings, build_optimizer

VARIANTS = ["oft-discrete", "oft-l1", "openvla", "cnn"]
CLIP = Clip(0.2, 0.28)
EXACT = ServedLimits(tolerance=1e-4, trusted=0.1, refused=1.0, weight_cap=2.0)
SETTINGS = UpdateSettings(
    optimizer_steps=1, micro_batch=4, clip=CLIP, clip_norm=1.0, served=EXACT, seed=0
)
ADVANTAGES = [1.5, -0.5, -1.0]


@pytest.fixture(params=VARIANTS)
def policy(request, tmp_path):
    return renewed_policy(tmp_path, variant=request.param)


def samples_of(policy, shift=0.0):
    """Three episodes, their recorded log-probabilities moved by +-`shift` nats."""
    episodes = [play(policy, i, chunks=2 + i) for i in range(3)]
    trajectories = [
        Trajectory(i, episode, advantage)
        for i, (episode, advantage) in enumerate(zip(episodes, ADVANTAGES, strict=True))
    ]
    samples = build_samples(trajectories, policy.model.cameras)
    signs = np.where(np.arange(samples.logprobs_BKA.size) % 2, 1, -1)
    moved = samples.logprobs_BKA + shift * signs.reshape(samples.logprobs_BKA.shape)
    return dataclasses.replace(samples, logprobs_BKA=moved.astype(np.float32))


def updater_for(policy, learning_rate=1e-2):
    optimizer = build_optimizer(policy.parameters, learning_rate, 0.0)
    return Updater(policy, optimizer, SETTINGS)


@torch.no_grad()
def logprobs_by_hand(policy, samples):
    """Recorded choices scored row by row, the formula written out in numpy (B, K, A)."""
    rows = []
    for row in range(len(samples)):
        one = slice(row, row + 1)
        choices = samples.choices_BKA[one]
        output = policy.forward(
            samples.images_BNHWC[one], samples.proprio_BP[one], samples.instruction_B[one], choices
        )
        temperature = float(samples.temperatures_B[row])
        if output.means_BKA is not None:
            scale = policy.network.config.laplace_scale * temperature
            distance = np.abs(choices - output.means_BKA.numpy())
            rows.append(-distance / scale - np.log(2 * scale))
        else:
            scores = output.logits_BKAV.double().numpy() / temperature
            norm = np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1))
            chosen = np.take_along_axis(scores, choices[..., None], -1)[..., 0]
            rows.append(chosen - scores.max(-1) - norm)
    return np.concatenate(rows)


def test_what_was_drawn_is_scored_as_it_was_drawn(policy):
    samples = samples_of(policy)
    scores = policy.score(samples, np.arange(len(samples)))
    recorded = torch.from_numpy(samples.logprobs_BKA)
    torch.testing.assert_close(scores.logprobs_BKA.detach(), recorded, atol=1e-4, rtol=0)
    assert_near(logprobs_by_hand(policy, samples), recorded, REFERENCE)


def test_the_loss_is_the_one_computed_by_hand(policy):
    samples = samples_of(policy, shift=0.5)
    sums = updater_for(policy).accumulate_gradient(samples, np.arange(3))
    ratio = np.exp(logprobs_by_hand(policy, samples) - samples.logprobs_BKA)
    expected = 0.0
    for i, advantage in enumerate(ADVANTAGES):
        rows = samples.trajectory_B == i
        clipped = np.clip(ratio[rows], 1 - CLIP.low, 1 + CLIP.high)
        worse = np.maximum(-advantage * ratio[rows], -advantage * clipped)
        used = samples.mask_BK[rows].astype(bool)
        # Every trajectory counts once: the mean over its own executed actions and dimensions.
        expected += worse[used].mean() / len(ADVANTAGES)
    assert sums.loss == pytest.approx(expected, rel=1e-4)
    assert 0 < sums.clipped < sums.tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_agrees_with_finite_differences(variant, tmp_path):
    policy = micro_policy(
        tmp_path, variant=variant, learn_scale=variant == "oft-l1", dtype=torch.float64
    )
    samples = samples_of(policy, shift=0.05)
    updater = updater_for(policy)
    updater.accumulate_gradient(samples, np.arange(3))
    parameters = policy.parameters
    generator = torch.Generator().manual_seed(0)
    direction = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for name, p in parameters.items()
    }
    slope = sum((p.grad * direction[name]).sum().item() for name, p in parameters.items())

    def loss_at(step: float) -> float:
        with torch.no_grad():
            for name, p in parameters.items():
                p.add_(direction[name], alpha=step)
        sums = updater.accumulate_gradient(samples, np.arange(3))
        with torch.no_grad():
            for name, p in parameters.items():
                p.sub_(direction[name], alpha=step)
        return sums.loss

    step = 1e-5  # norms are float32 inside, whatever the weights
    measured = (loss_at(step) - loss_at(-step)) / (2 * step)
    assert abs(slope) > 1e-3
    assert measured == pytest.approx(slope, rel=5e-3)


def test_a_step_makes_rewarded_choices_likelier(policy):
    samples = samples_of(policy)
    report = updater_for(policy, learning_rate=1e-4).run(samples, len(ADVANTAGES), update_id=1)
    assert report.agreement.largest <= 1e-4
    with torch.no_grad():
        after = policy.score(samples, np.arange(len(samples))).logprobs_BKA.numpy()
    change = (after - samples.logprobs_BKA) * samples.mask_BK[..., None]
    assert (
        change * samples.advantages_B[:, None, None] * samples.weights_B[:, None, None]
    ).sum() > 0


def test_choices_of_another_policy_are_refused(policy):
    with pytest.raises(ServedTrainedMismatch, match="differ from the learner's"):
        updater_for(policy).run(samples_of(policy, shift=0.01), len(ADVANTAGES), update_id=1)


def test_a_learned_spread_is_trained_published_and_taken_over(tmp_path):
    policy = micro_policy(tmp_path, variant="oft-l1", learn_scale=True)
    before = policy.parameters[LOG_SCALE].detach().clone()
    updater_for(policy).run(samples_of(policy), len(ADVANTAGES), update_id=1)
    learned = policy.parameters[LOG_SCALE].detach()
    assert (learned != before).all()
    assert "action_scale.json" in policy.adapter_files()
    again = micro_policy(tmp_path, variant="oft-l1", learn_scale=True)
    again.load_adapter(policy.adapter_tensors())
    assert torch.equal(again.parameters[LOG_SCALE].detach(), learned)
    assert again.adapter_files() == policy.adapter_files()
    fixed = micro_policy(tmp_path, variant="oft-l1")
    assert "action_scale.json" not in fixed.adapter_files()
    with pytest.raises(AdapterError, match="learn_action_scale"):
        fixed.load_adapter(policy.adapter_tensors())
