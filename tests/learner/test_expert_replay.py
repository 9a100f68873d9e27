"""Experience replay of an expert's demonstrations, those of learned tasks alone."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from learner_run import Run, make_config
from micro_fixtures import INSTRUCTIONS, A, K, renewed_policy
from replay_fixtures import (
    BATCH,
    SEED,
    STEP,
    UPDATE,
    WEIGHT,
    PlayedPast,
    check_against_finite_differences,
    learn_two,
    make_er,
)

from agent.wire.errors import ConfigError
from learner.config import SftConfig
from learner.continual.settings import ContinualConfig, DerConfig, ErConfig
from learner.demonstrations import DemonstrationError, load_demonstrations, load_episodes
from learner.randomness import keyed_rng
from learner.sft import supervised_loss


@pytest.fixture(params=["oft-discrete", "oft-l1", "openvla"])
def policy(request, tmp_path):
    return renewed_policy(tmp_path, variant=request.param)


@pytest.fixture
def discrete(tmp_path):
    return renewed_policy(tmp_path)


@pytest.fixture
def shards(tmp_path):
    """Demonstrations of a, b and h; the second of each shard has a frame labelled again, for a."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "demos"
    folder.mkdir()
    tasks = [{"slug": slug, "instruction": INSTRUCTIONS[i % 2]} for i, slug in enumerate("abh")]
    (folder / "meta.json").write_text(json.dumps({"tasks": tasks}))
    task = np.array([0] * 4 + [1, 1, 1, 0, 1] + [2] * 3 + [0] * 4, np.int16)
    episode = np.array([0] * 4 + [1] * 5 + [2] * 3 + [3] * 4, np.int32)
    frames = len(task)
    for shard in range(2):
        np.savez(
            folder / f"shard-{shard:05d}.npz",
            agentview=rng.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8),
            wrist=rng.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8),
            proprio=np.arange(frames * 8, dtype=np.float32).reshape(-1, 8) / 1000 + shard,
            task=task,
            actions=rng.uniform(-1, 1, (frames, K + 1, A)).astype(np.float32),
            state=np.zeros((frames, 0), np.float32),
            target=np.zeros((frames, 0), np.float32),
            episode=episode + 10 * shard,
        )
    return folder


def test_whole_demonstrations_of_the_task_are_drawn_by_the_key(shards):
    frames = load_demonstrations([shards], ["a"])
    seen = []
    for index in range(30):
        one = load_episodes([shards], "a", 1, keyed_rng(0, "test", index))
        assert len(one) == 4
        assert (one.task == 0).all()
        start = int(np.flatnonzero((frames.proprio == one.proprio[0]).all(1))[0])
        assert (frames.actions[start : start + 4] == one.actions).all()
        seen.append(start)
    # Places among the frames for a: two episodes a shard; never the frame of another's episode.
    assert set(seen) == {0, 5, 9, 14}
    again = [load_episodes([shards], "a", 1, keyed_rng(0, "test", i)).proprio for i in range(30)]
    assert [int(np.flatnonzero((frames.proprio == p[0]).all(1))[0]) for p in again] == seen
    assert len(load_episodes([shards], "b", 100, keyed_rng(0, "test", 0))) == 8


def test_er_with_demonstrations_reads_those_of_learned_tasks_alone(policy, shards):
    er = learn_two(make_er(policy, PlayedPast(), demonstrations=[str(shards)]))
    memory = er.memory.rows
    assert (memory.task_B == ["a"] * 4 + ["b"] * 4).all()
    assert set(memory.instruction_B) == set(INSTRUCTIONS)
    assert (memory.temperatures_B == 1).all()
    assert memory.mask_BK.all()
    figures = check_against_finite_differences(policy, er)
    if policy.network.config.is_regression:
        return
    # As in supervised fine-tuning on the same rows.
    losses = []
    for row in er.memory.draw(BATCH, SEED, UPDATE, STEP):
        one = np.array([row])
        output = policy.score(memory, one).output
        losses.append(supervised_loss(output, torch.from_numpy(memory.choices_BKA[one])).item())
    assert figures["er_loss"] == pytest.approx(WEIGHT * np.mean(losses), rel=1e-4)


def test_demonstrations_that_lack_a_task_are_refused_before_the_run(shards, discrete):
    meta = json.loads((shards / "meta.json").read_text())
    meta["tasks"][1]["slug"] = "other"
    (shards / "meta.json").write_text(json.dumps(meta))
    make_er(discrete, PlayedPast(), demonstrations=[str(shards)])  # b is the last: never replayed
    meta["tasks"][0]["slug"] = "another"
    (shards / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DemonstrationError, match="no task 'a'"):
        make_er(discrete, PlayedPast(), demonstrations=[str(shards)])


@pytest.mark.parametrize(
    ("change", "message"), [("episode", "episode.*are missing"), ("actions", "2 actions")]
)
def test_shards_that_cannot_be_replayed_are_refused(change, message, shards, discrete):
    for path in shards.glob("*.npz"):
        with np.load(path) as archive:
            arrays = dict(archive)
        if change == "episode":
            del arrays["episode"]
        else:
            arrays["actions"] = arrays["actions"][:, : K - 1]
        np.savez(path, **arrays)
    er = make_er(discrete, PlayedPast(), demonstrations=[str(shards)])
    with pytest.raises(DemonstrationError, match=message):
        er.before_task(1, "v1")


def supervised(continual, shards):
    sft = SftConfig([str(shards)], steps_per_iteration=2, batch_size=4)
    config = make_config()
    algorithm = dataclasses.replace(config.algorithm, method="sft")
    return dataclasses.replace(config, algorithm=algorithm, sft=sft, continual=continual)


def test_replay_of_episodes_needs_an_algorithm_that_collects(shards):
    for continual in (
        ContinualConfig("er", er=ErConfig()),
        ContinualConfig("der", der=DerConfig()),
    ):
        with pytest.raises(ConfigError, match="sft collects none"):
            supervised(continual, shards)
        with pytest.raises(ConfigError, match="keep_used_episodes"):
            dataclasses.replace(make_config(continual), keep_used_episodes=False)


def test_demonstrations_are_replayed_beside_supervised_fine_tuning(shards, tmp_path):
    continual = ContinualConfig("er", er=ErConfig(batch_size=4, demonstrations=[str(shards)]))
    run = Run(tmp_path, supervised(continual, shards))
    run.go()
    lines = map(json.loads, (tmp_path / "state" / "progress.jsonl").read_text().splitlines())
    first, second = [line for line in lines if line["event"] == "iteration"]
    assert (first["memory_chunks"], second["memory_chunks"]) == (0, 4)
    assert "er_loss" not in first
    assert second["er_loss"] > 0
    assert 0 < second["memory_mb"] < 1
