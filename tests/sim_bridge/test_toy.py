"""The toy suite: deterministic, fair to chance, and easy to improve."""

from __future__ import annotations

import numpy as np
import pytest

from sim_bridge.robot import BridgeError, UnknownTask
from sim_bridge.toy import ACTION_DIM, DIRECTIONS, HORIZON_STEPS, ToySuite


def rollout(task: str, split: str, init_state: int, actions_TA: np.ndarray) -> list[bytes]:
    """Everything seen along the way."""
    body = ToySuite().make_body(task)
    body.reset(split, init_state)
    seen = []
    for action_A in actions_TA:
        body.apply(action_A)
        at = body.observe()
        seen.append(at.proprio.tobytes() + b"".join(view.tobytes() for view in at.images.values()))
    return seen


def success_rate(mean: float, episodes: int = 400) -> float:
    """Of uniform actions shifted by `mean` along the task's direction."""
    rng = np.random.default_rng(0)
    tasks = list(DIRECTIONS)
    solved = 0
    for number in range(episodes):
        task = tasks[number % len(tasks)]
        body = ToySuite().make_body(task)
        body.reset("train", number % 50)
        for _ in range(HORIZON_STEPS):
            action_A = rng.uniform(-1, 1, ACTION_DIM)
            action_A[:2] += mean * np.asarray(DIRECTIONS[task])
            body.apply(np.clip(action_A, -1, 1))
            if body.success:
                solved += 1
                break
    return solved / episodes


def test_same_start_and_actions_give_the_same_observations() -> None:
    actions_TA = np.random.default_rng(1).uniform(-1, 1, (20, ACTION_DIM)).astype(np.float32)
    first = rollout("move_up", "eval", 7, actions_TA)
    assert first == rollout("move_up", "eval", 7, actions_TA)
    for other in (("move_up", "train", 7), ("move_up", "eval", 8), ("move_left", "eval", 7)):
        assert first != rollout(*other, actions_TA)


def test_a_reset_body_is_as_good_as_a_new_one() -> None:
    body = ToySuite().make_body("move_left")
    body.reset("train", 3)
    fresh = body.observe()
    body.apply(-np.ones(ACTION_DIM))
    body.reset("train", 3)
    again = body.observe()
    assert np.array_equal(fresh.proprio, again.proprio)
    assert np.array_equal(fresh.images["wrist"], again.images["wrist"])


def test_chance_succeeds_sometimes_and_a_small_drift_nearly_always() -> None:
    assert 0.3 <= success_rate(0.0) <= 0.5
    assert success_rate(0.25) > 0.85


@pytest.mark.parametrize("task", DIRECTIONS)
def test_only_the_tasks_own_direction_solves_it(task: str) -> None:
    for other, direction in DIRECTIONS.items():
        body = ToySuite().make_body(task)
        body.reset("eval", 0)
        action_A = np.zeros(ACTION_DIM)
        action_A[:2] = direction
        assert not any(body.apply(action_A) for _ in range(HORIZON_STEPS))  # it can always go on
        assert body.success == (other == task)


def test_the_image_shows_the_point_move() -> None:
    body = ToySuite().make_body("move_right")
    body.reset("train", 0)
    columns = []
    for _ in range(4):
        columns.append(int(body.observe().images["agentview"][..., 0].any(axis=0).argmax()))
        body.apply(np.eye(ACTION_DIM)[0])
    assert columns == sorted(columns)
    assert columns[-1] > columns[0]


@pytest.mark.parametrize(("split", "init_state"), [("test", 0), ("train", 50), ("eval", -1)])
def test_an_unknown_init_state_is_refused(split: str, init_state: int) -> None:
    with pytest.raises(BridgeError, match="expected"):
        ToySuite().make_body("move_left").reset(split, init_state)


def test_an_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(UnknownTask, match="move_left, move_right, move_up, move_down"):
        ToySuite().make_body("fly")
