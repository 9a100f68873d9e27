"""A recording comes back as it was: each observation at its own step, every action once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.episode import ChunkRecord, EndRecord, EpisodeMeta, mint_episode_id
from agent.episode_writer import EpisodeWriter
from agent.wire.errors import ConfigError
from agent.wire.messages import Executed, Outcome
from sim_bridge.robot import BridgeError
from sim_bridge.robots.config import RobotConfig
from sim_bridge.robots.replay import ReplayRobot

K, A = 4, 3
LATE = Executed.NOT_RUN


def record(
    folder: Path, codes_TK: list[list[int]], task: str = "reach", pixels: bool = True
) -> Path:
    """An episode whose chunk t saw pixels of value t and answered 10 t + k in every dimension."""
    meta = EpisodeMeta(
        episode_id=mint_episode_id(), order_id="", slot_id="", suite="robot", task=task,
        instruction=task, split="", init_state=0, phase="serve", version="base", horizon_steps=0,
        temperature=0.0, run_seed=0, noise_key="", slot_index=0, policy="noop",
        base_sha256="0" * 64, client_id="arm", started_unix_s=0.0,
    )  # fmt: skip
    path = folder / f"{meta.episode_id}.mcap"
    writer = EpisodeWriter(path, meta)
    for t, _ in enumerate(codes_TK):
        image = np.full((2, 2, 3), t, np.uint8)
        writer.append(
            ChunkRecord(
                step_index=t,
                images={"wrist": image} if pixels else {},
                proprio=np.full(2, t, np.float32),
                choices_KA=np.zeros((K, A), np.int32),
                logprobs_KA=np.zeros((K, A), np.float32),
                actions_KA=np.repeat(10.0 * t + np.arange(K)[:, None], A, 1).astype(np.float32),
                version="base",
            )
        )
    codes = np.array(codes_TK, np.uint8)
    writer.seal(EndRecord("success", int((codes > 0).sum()), codes, "", 0.0))
    return path


def live(robot: ReplayRobot) -> tuple[list[int], list[int]]:
    """(what is seen before each step, the actions it compares with) to the recording's end."""
    seen, recorded = [], []
    while robot.outcome() is None:
        seen.append(int(robot.observe().images["wrist"].max()))
        before = robot.summary()["difference_mean"]
        robot.apply(np.zeros(A, np.float32))
        steps = len(seen)
        recorded.append(round(robot.summary()["difference_mean"] * steps - before * (steps - 1)))
    return seen, recorded


def test_chunks_played_whole_are_seen_one_after_the_other(tmp_path: Path) -> None:
    record(tmp_path, [[1, 1, 2, 1], [1, 1, 0, 0]])
    robot = ReplayRobot(tmp_path)
    robot.reset("reach", "", 0)
    assert live(robot) == ([0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 10, 11])
    assert robot.outcome() == Outcome.ABORTED, "nothing was measured"
    assert robot.summary()["difference_max"] == 11.0


def test_an_observation_comes_back_as_early_as_it_was_taken(tmp_path: Path) -> None:
    # Chunk 1 was asked for after 2 actions and came 2 later; chunk 2 was stale; chunk 3 blended.
    record(tmp_path, [[1, 1, 1, 1], [LATE, LATE, 1, 1], [LATE] * K, [LATE, 3, 1, 1]])
    robot = ReplayRobot(tmp_path)
    robot.reset("reach", "", 0)
    seen, recorded = live(robot)
    assert seen == [0, 0, 1, 1, 1, 1, 3, 3, 3]
    assert recorded == [0, 1, 2, 3, 12, 13, 31, 32, 33]


def test_episodes_of_the_task_go_round_and_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    first, second = record(tmp_path, [[1] * K]), record(tmp_path, [[1] * K] * 2)
    record(tmp_path, [[1] * K], task="push")
    record(tmp_path, [[1] * K], pixels=False)
    torn = record(tmp_path, [[1] * K])
    torn.write_bytes(torn.read_bytes()[:-40])
    robot = ReplayRobot(tmp_path)
    lengths = []
    for _ in range(3):
        robot.reset("reach", "", 0)
        lengths.append(len(live(robot)[0]))
    assert lengths == [4, 8, 4]
    first.unlink()  # its agent has handed it to a learner
    second.unlink()
    with pytest.raises(BridgeError, match=r"no whole episode of 'reach'.* push"):
        robot.reset("reach", "", 0)


def test_a_recording_of_another_body_and_a_folder_without_any_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="replay_dir"):
        ReplayRobot(tmp_path)
    with pytest.raises(ConfigError, match="replay_dir"):
        RobotConfig(robot="replay", task="reach")
    record(tmp_path, [[1] * K])
    robot = ReplayRobot(tmp_path)
    robot.reset("reach", "", 0)
    with pytest.raises(BridgeError, match="7 numbers, the recording has 3"):
        robot.apply(np.zeros(7, np.float32))
