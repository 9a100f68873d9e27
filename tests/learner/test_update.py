import dataclasses

import numpy as np
import pytest
import torch
from closeness import GRADIENT, assert_near
from micro_fixtures import CAMERAS, INSTRUCTIONS, micro_policy, play, renewed_policy
from safetensors.torch import load

from learner.advantages import normalise_group
from learner.batch import Trajectory, build_samples
from learner.checkpoint import load_optimizer_tensors, optimizer_tensors
from learner.loss import Clip
from learner.served import ServedLimits, ServedTrainedMismatch
from learner.stopping import Stopped
from learner.update import NonFiniteGradient, Updater, UpdateSettings, build_optimizer

EXACT = ServedLimits(tolerance=1e-4, trusted=0.1, refused=1.0, weight_cap=2.0)
SETTINGS = UpdateSettings(
    optimizer_steps=2,
    micro_batch=4,
    clip=Clip(0.2, 0.28),
    clip_norm=1.0,
    served=EXACT,
    seed=0,
)


@pytest.fixture
def policy(tmp_path):
    return renewed_policy(tmp_path)


def group_of(policy, outcomes, first=0, **changes):
    advantages = normalise_group(np.array(outcomes, dtype=float))
    episodes = [
        play(policy, first + i, chunks=2 + i % 3, success=bool(o), **changes)
        for i, o in enumerate(outcomes)
    ]
    return [
        Trajectory(first + i, episode, float(a))
        for i, (episode, a) in enumerate(zip(episodes, advantages, strict=True))
    ]


def updater_for(policy, settings=SETTINGS, learning_rate=1e-2, **changes):
    optimizer = build_optimizer(policy.parameters, learning_rate, 0.0)
    return Updater(policy, optimizer, settings, **changes)


def gradient(policy):
    return torch.cat([p.grad.flatten() for p in policy.parameters.values()])


def adapter_bytes(policy):
    return policy.adapter_files()["adapter_model.safetensors"]


def test_dropped_and_masked_degenerate_groups_give_the_same_gradient(policy):
    mixed = group_of(policy, [1, 0, 0, 1])
    degenerate = group_of(policy, [1, 1, 1], first=4)
    everyone = np.arange(7)
    updater = updater_for(policy)
    updater.accumulate_gradient(build_samples(mixed, CAMERAS), everyone)
    dropped = gradient(policy).clone()
    updater.accumulate_gradient(build_samples(mixed + degenerate, CAMERAS), everyone)
    masked = gradient(policy)
    assert dropped.norm() > 1e-3
    assert_near(masked, dropped, GRADIENT)


def test_the_denominator_counts_every_collected_trajectory(policy):
    samples = build_samples(group_of(policy, [1, 0, 0, 1]), CAMERAS)
    updater = updater_for(policy)
    updater.accumulate_gradient(samples, np.arange(4))
    four = gradient(policy).clone()
    updater.accumulate_gradient(samples, np.arange(8))
    assert_near(gradient(policy) * 2, four, GRADIENT)


def test_recomputed_activations_give_the_same_gradient(policy, tmp_path):
    samples = build_samples(group_of(policy, [1, 0, 0, 1]), CAMERAS)
    updater_for(policy).accumulate_gradient(samples, np.arange(4))
    recomputing = micro_policy(tmp_path, recompute=True)
    updater_for(recomputing).accumulate_gradient(samples, np.arange(4))
    assert_near(gradient(recomputing), gradient(policy), GRADIENT)


def test_gradient_does_not_depend_on_the_micro_batch_size(policy):
    samples = build_samples(group_of(policy, [1, 0, 0, 1]), CAMERAS)
    updater_for(policy).accumulate_gradient(samples, np.arange(4))
    by_four = gradient(policy).clone()
    seven = dataclasses.replace(SETTINGS, micro_batch=7)
    updater_for(policy, seven).accumulate_gradient(samples, np.arange(4))
    assert_near(gradient(policy), by_four, GRADIENT)


def test_policy_gradient_equals_a_finite_difference_through_the_model(policy):
    samples = build_samples(group_of(policy, [1, 0, 0]), CAMERAS)
    updater = updater_for(policy)
    updater.accumulate_gradient(samples, np.arange(3))
    direction = {
        name: torch.sign(p.grad) * (p.grad.abs() > 0) for name, p in policy.parameters.items()
    }
    slope = sum((policy.parameters[n].grad * d).sum().item() for n, d in direction.items())

    def loss_at(step):
        with torch.no_grad():
            for name, p in policy.parameters.items():
                p.add_(direction[name] * step)
        sums = updater.accumulate_gradient(samples, np.arange(3))
        with torch.no_grad():
            for name, p in policy.parameters.items():
                p.sub_(direction[name] * step)
        return sums.loss

    step = 2e-5
    assert (loss_at(step) - loss_at(-step)) / (2 * step) == pytest.approx(slope, rel=0.02)


def test_an_update_makes_rewarded_actions_more_likely(policy):
    trajectories = group_of(policy, [1, 0, 0, 1])
    samples = build_samples(trajectories, CAMERAS)
    report = updater_for(policy, learning_rate=1e-3).run(samples, 4, update_id=1)
    assert report.first_clip_fraction == 0.0
    assert report.agreement.largest <= 1e-4
    assert report.grad_norm > 0
    with torch.no_grad():
        change = policy.score(samples, np.arange(len(samples))).logprobs_BKA.numpy()
    change_B = ((change - samples.logprobs_BKA).sum(axis=2) * samples.mask_BK).sum(axis=1)
    assert (change_B * samples.weights_B * samples.advantages_B).sum() > 0


def test_learning_rate_zero_changes_nothing(policy):
    before = adapter_bytes(policy)
    samples = build_samples(group_of(policy, [1, 0]), CAMERAS)
    updater_for(policy, learning_rate=0.0).run(samples, 2, update_id=1)
    assert adapter_bytes(policy) == before


def test_all_groups_degenerate_still_takes_the_fixed_number_of_steps(policy):
    updater = updater_for(policy)
    report = updater.run(None, 8, update_id=1)
    assert report.samples == 0
    state = updater.optimizer.state[next(iter(policy.parameters.values()))]
    assert state["step"].item() == SETTINGS.optimizer_steps


@pytest.mark.parametrize("what", ["pixels", "version"])
def test_samples_that_are_not_the_served_ones_are_refused_untouched(policy, tmp_path, what):
    if what == "pixels":
        trajectories = group_of(policy, [1, 0, 0, 1])
        chunk = trajectories[2].episode.chunks[0]
        for record in trajectories[2].episode.chunks:
            record.images["wrist"][:] = 255 - record.images["wrist"]
        assert chunk.images["wrist"].dtype == np.uint8
    else:
        (tmp_path / "other").mkdir()
        trajectories = group_of(micro_policy(tmp_path / "other", seed=5), [1, 0, 0, 1])
    before = adapter_bytes(policy)
    with pytest.raises(ServedTrainedMismatch, match=r"episode \w+, step \d.*v00001-aaaaaaaaaaaa"):
        updater_for(policy).run(build_samples(trajectories, CAMERAS), 4, update_id=1)
    assert adapter_bytes(policy) == before


def test_samples_of_two_instructions_never_share_a_batch_and_still_verify(policy):
    mixed = group_of(policy, [1, 0]) + group_of(
        policy, [1, 0], first=2, instruction=INSTRUCTIONS[1]
    )
    report = updater_for(policy).run(build_samples(mixed, CAMERAS), 4, update_id=1)
    assert report.agreement.largest <= 1e-4


def test_a_gradient_that_is_not_finite_is_refused_before_its_step(policy):
    samples = build_samples(group_of(policy, [1, 0]), CAMERAS)
    spoilt = dataclasses.replace(samples, advantages_B=samples.advantages_B * np.float32(np.inf))
    before = adapter_bytes(policy)
    with pytest.raises(NonFiniteGradient, match="lower learning rate"):
        updater_for(policy).run(spoilt, 2, update_id=1)
    assert adapter_bytes(policy) == before


def test_stop_is_honoured_between_micro_batches(policy):
    samples = build_samples(group_of(policy, [1, 0]), CAMERAS)
    with pytest.raises(Stopped):
        updater_for(policy, should_stop=lambda: True).run(samples, 2, update_id=1)


def test_a_resumed_optimiser_and_adapter_go_on_byte_for_byte(policy, tmp_path):
    first = build_samples(group_of(policy, [1, 0, 1]), CAMERAS)
    straight = updater_for(policy)
    straight.run(first, 3, update_id=1)
    saved_adapter = policy.adapter_tensors()
    saved = {k: v.clone() for k, v in
             optimizer_tensors(straight.optimizer, policy.parameters).items()}  # fmt: skip
    second = build_samples(group_of(policy, [0, 1, 1]), CAMERAS)
    straight.run(second, 3, update_id=2)

    (tmp_path / "resumed").mkdir()
    fresh = micro_policy(tmp_path / "resumed")
    fresh.load_adapter(saved_adapter)
    resumed = updater_for(fresh)
    load_optimizer_tensors(resumed.optimizer, fresh.parameters, saved)
    resumed.run(second, 3, update_id=2)
    assert adapter_bytes(fresh) == adapter_bytes(policy)


def test_a_second_epoch_is_a_second_pass_over_the_same_episodes(policy):
    """With one minibatch an epoch: as two updates on the same samples, of one policy before."""
    samples = build_samples(group_of(policy, [1, 0, 0, 1]), CAMERAS)
    start = policy.adapter_tensors()
    once = dataclasses.replace(SETTINGS, optimizer_steps=1)
    updater = updater_for(policy, once)
    for _ in range(2):
        updater.accumulate_gradient(samples, np.arange(4))
        updater._step()
    expected = adapter_bytes(policy)
    policy.load_adapter(start)
    report = updater_for(policy, dataclasses.replace(once, epochs=2)).run(samples, 4, update_id=1)
    assert report.first_clip_fraction == 0.0
    before, after = (load(content) for content in (expected, adapter_bytes(policy)))
    for name in before:
        assert_near(after[name], before[name], GRADIENT, scale=1e-2, name=name)
    assert any(not torch.equal(after[name], start[name]) for name in after)
