import dataclasses

import numpy as np
import pytest
from micro_fixtures import CAMERAS, INSTRUCTIONS, A, K, micro_policy, play

from agent.wire.messages import Executed
from learner.batch import (
    BatchError,
    Trajectory,
    build_samples,
    micro_batches,
    split_trajectories,
)
from learner.pictures import picture_pixels


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return micro_policy(tmp_path_factory.mktemp("micro"))


def with_codes(episode, codes_TK):
    end = dataclasses.replace(episode.end, executed_TK=np.array(codes_TK, dtype=np.uint8))
    return dataclasses.replace(episode, end=end)


def test_run_and_limited_actions_are_trained_the_others_masked(policy):
    run, limited, replaced, not_run = (
        Executed.RUN, Executed.LIMITED, Executed.REPLACED, Executed.NOT_RUN,
    )  # fmt: skip
    episode = with_codes(
        play(policy, 0, chunks=2), [[run, limited, replaced], [run, not_run, not_run]]
    )
    samples = build_samples([Trajectory(5, episode, 0.7)], CAMERAS)
    assert samples.mask_BK.tolist() == [[1, 1, 0], [1, 0, 0]]
    np.testing.assert_allclose(samples.weights_B, 1 / (3 * A))
    assert samples.trajectory_B.tolist() == [5, 5]
    assert samples.images_BNHWC.shape == (2, 2, 16, 16, 3)


def test_weights_times_mask_sum_to_one_for_every_trajectory(policy):
    trajectories = [Trajectory(i, play(policy, i, chunks=1 + i), 1.0) for i in range(3)]
    samples = build_samples(trajectories, CAMERAS)
    mass_B = samples.weights_B * samples.mask_BK.sum(axis=1) * A
    for index in range(3):
        assert mass_B[samples.trajectory_B == index].sum() == pytest.approx(1.0)


def test_an_episode_without_an_executed_action_has_no_samples(policy):
    episode = with_codes(play(policy, 0, chunks=1), [[0] * K])
    assert build_samples([Trajectory(0, episode, 1.0)], CAMERAS) is None


def test_mixed_versions_and_missing_images_are_refused(policy):
    episode = play(policy, 0, chunks=2)
    mixed = dataclasses.replace(episode.chunks[1], version="v00002-bbbbbbbbbbbb")
    with pytest.raises(BatchError, match=r"step 1: made by v00002"):
        build_samples(
            [Trajectory(0, dataclasses.replace(episode, chunks=[episode.chunks[0], mixed]), 1.0)],
            CAMERAS,
        )
    with pytest.raises(BatchError, match="depth"):
        build_samples([Trajectory(0, episode, 1.0)], ["agentview", "depth"])


def test_minibatches_partition_all_trajectories_and_depend_on_the_key_alone():
    parts = split_trajectories(22, 4, seed=1, update_id=3)
    assert sorted(np.concatenate(parts)) == list(range(22))
    assert [len(part) for part in parts] == [6, 6, 5, 5]
    again = split_trajectories(22, 4, seed=1, update_id=3)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))
    for other in (
        split_trajectories(22, 4, seed=1, update_id=4),
        split_trajectories(22, 4, seed=1, update_id=3, epoch=1),
    ):
        assert sorted(np.concatenate(other)) == list(range(22))
        assert any((a != b).any() for a, b in zip(parts[:2], other[:2], strict=True))


def test_micro_batches_have_one_shape_and_one_instruction_and_cover_each_row_once(policy):
    trajectories = [
        Trajectory(i, play(policy, i, chunks=3, instruction=INSTRUCTIONS[i % 2]), 1.0)
        for i in range(4)
    ]
    samples = build_samples(trajectories, CAMERAS)
    seen = []
    for rows, fill in micro_batches(samples, np.arange(len(samples)), size=4):
        assert len(rows) == len(fill) == 4
        assert len(set(samples.instruction_B[rows])) == 1
        seen += rows[fill > 0].tolist()
    assert sorted(seen) == list(range(12))


def with_picture_size(episode, height, width, only_step=None):
    """The same observations with the first camera's picture in another size."""
    chunks = []
    for chunk in episode.chunks:
        images = dict(chunk.images)
        if only_step in (None, chunk.step_index):
            images[CAMERAS[0]] = np.resize(images[CAMERAS[0]], (height, width, 3))
        chunks.append(dataclasses.replace(chunk, images=images))
    return dataclasses.replace(episode, chunks=chunks)


def test_pictures_of_any_size_are_one_batch_and_each_is_seen_as_it_would_be_alone(policy):
    plain = play(policy, 0, chunks=2)
    episodes = [
        plain,
        with_picture_size(play(policy, 1, chunks=2), 24, 20),
        with_picture_size(play(policy, 2, chunks=3), 9, 30, only_step=1),
    ]
    trajectories = [Trajectory(i, episode, 1.0) for i, episode in enumerate(episodes)]
    samples = build_samples(trajectories, CAMERAS)
    assert len(samples) == 7
    together = picture_pixels(policy.model.images, samples.images_BNHWC)
    chunks = [chunk for episode in episodes for chunk in episode.chunks]
    for seen, chunk in zip(together, chunks, strict=True):
        alone = policy.model.images.camera_pixels([chunk.images[name] for name in CAMERAS])
        assert (seen == alone).all()
    rows = np.arange(7)
    mixed = policy.score(samples, rows).logprobs_BKA
    usual = policy.score(build_samples(trajectories[:1], CAMERAS), rows[:2]).logprobs_BKA
    np.testing.assert_allclose(mixed[:2].detach(), usual.detach(), rtol=1e-4, atol=1e-5)
