"""Scripted expert: a Markov policy on the observable state, for demonstrations and relabelling.

The action depends on the current poses and the finger gap alone, never on a counter, so it can
label any state a learned policy drifts into: a dropped cube, a missed grasp, an overshot push.
"""

import numpy as np

from sim_bridge.tabletop.env import ROTATION_RAD, TRANSLATION_M, TabletopEnv
from sim_bridge.tabletop.goals import (
    goal_position,
    handle_position,
    is_held,
    is_success,
    subject_position,
)
from sim_bridge.tabletop.scene import CUBES
from sim_bridge.tabletop.tasks import GOALS

GAIN = 0.5  # share of the remaining way asked for in one step
YAW_SLACK_RAD = 0.25  # closing fingers turn a cube by this much without help
OPEN, CLOSE = -1.0, 1.0
HOVER_M = 0.080  # the tips clear a cube on the table
CARRY_M = 0.085  # centre of a held cube: its lower face clears a cube on the table
CONE_SLOPE = 2.5  # height over the goal allowed per metre of horizontal distance
CLOSING_GAP_M = 0.075  # below it the fingers are closing, not waiting open
PULL_M = 0.026  # way asked for when pulling: slow enough for the grip
HANDLE_HALF_LENGTH = np.array([0.0, 0.0165, 0.0])
PUSH_M = 0.028  # way asked for when pushing: slow enough to stop on the mat
PUSH_REACH_M = 0.034  # puck centre to hand centre in contact
RIGHT = np.zeros(3)


def expert_action(env: TabletopEnv, misjudged_m: np.ndarray = RIGHT) -> np.ndarray:
    """The expert's action f32[7], each in [-1, 1], in the state `env` is in.

    misjudged_m: how far off (f64[3], m, world) the expert takes the place to be where a cube or
        the puck has to go; zero for the expert proper.
    """
    goal = GOALS[env.task.slug]
    if env.success or is_success(env):
        move, gripper = np.zeros(3), OPEN if env.finger_gap_m > 0.03 else CLOSE
    elif goal.subject == "puck":
        place = goal_position(env) + misjudged_m
        move, gripper = _push(env, env.position("puck"), place, PUSH_REACH_M, 0.018)
    elif goal.subject == "button":
        move, gripper = _press(env)
    elif goal.target == "closed":
        tip = handle_position(env) - HANDLE_HALF_LENGTH
        shut = tip + np.array([0.0, env.drawer_m + 0.01, 0.0])
        move, gripper = _push(env, tip, shut, 0.010, 0.034)
    elif goal.subject == "handle":
        move, gripper = _pull(env)
    else:
        move, gripper = _pick_and_place(env, goal_position(env) + misjudged_m)
    action_A = np.empty(7, np.float32)
    action_A[:3] = np.clip(move * (GAIN / TRANSLATION_M), -1.0, 1.0)
    turn = np.array([0.0, 0.0, _grasp_yaw(env)]) - env.proprio()[3:6]
    action_A[3:6] = np.clip(turn * (GAIN / ROTATION_RAD), -1.0, 1.0)
    action_A[6] = gripper
    return action_A


def _grasp_yaw(env: TabletopEnv) -> float:
    """Yaw of the hand that suits the cube to be grasped, rad; small turns the fingers undo."""
    subject = GOALS[env.task.slug].subject
    if subject not in CUBES or is_held(env, env.position(subject)):
        return 0.0
    yaw = env.yaw(subject)
    return float(np.sign(yaw) * max(0.0, abs(yaw) - YAW_SLACK_RAD))


def _approach(
    offset: np.ndarray, height_m: float, hover_m: float, free_m: float = 0.008
) -> np.ndarray:
    """Move along a cone down to a goal `offset` away (f64[3], m): f64[3], m.

    Above the goal the way down is free within `free_m`; further off the hand must be higher, up to
    `hover_m`. Below the cone it rises first, and moves sideways only as fast as it gets clear.
    `height_m` is the current height of what must clear obstacles.
    """
    goal_m = height_m + offset[2]
    away_m = float(np.hypot(offset[0], offset[1]))
    cone_m = goal_m + max(0.0, CONE_SLOPE * (away_m - free_m))
    wanted_m = max(goal_m, min(cone_m, hover_m))
    clear = np.clip(1.0 - (wanted_m - height_m - 0.005) / 0.03, 0.0, 1.0)
    return np.array([offset[0] * clear, offset[1] * clear, wanted_m - height_m])


def _pick_and_place(env: TabletopEnv, place: np.ndarray) -> tuple[np.ndarray, float]:
    cube, eef = subject_position(env), env.eef_position()
    away = place - cube
    if is_held(env, cube):
        if np.hypot(away[0], away[1]) < 0.010 and -0.010 < away[2] < 0.004:
            return np.zeros(3), OPEN
        # Let go a little above the surface rather than press the cube into it.
        return _approach(away + np.array([0.0, 0.0, 0.003]), cube[2], CARRY_M), CLOSE
    return _reach(
        env, cube - eef - np.array([0.0, 0.0, 0.002]), width_m=0.04, reach_yz=(0.009, 0.008)
    )


def _reach(
    env: TabletopEnv, offset: np.ndarray, width_m: float, reach_yz: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """Bring the open hand over a thing `offset` away and close the fingers on it."""
    local = np.abs(env.eef_rotation().T @ offset)
    # Fingers already on their way tolerate more, else noise makes them open again.
    slack = 1.6 if env.finger_gap_m < CLOSING_GAP_M else 1.0
    if local[0] < 0.016 and (local[1:] < np.multiply(slack, reach_yz)).all():
        return np.array([0.0, offset[1], offset[2]]), CLOSE
    eef_m = env.eef_position()[2]
    move = _approach(offset, eef_m, HOVER_M)
    if env.finger_gap_m < width_m + 0.03 and eef_m + offset[2] < HOVER_M - 0.01:
        move[2] = max(move[2], min(0.0, offset[2] + 0.045))  # wait above until the hand is open
    return move, OPEN


def _pull(env: TabletopEnv) -> tuple[np.ndarray, float]:
    grip = handle_position(env) + np.array([0.0, -0.0025, 0.004])
    offset = grip - env.eef_position()
    local = np.abs(env.eef_rotation().T @ offset)
    if (local < (0.015, 0.024, 0.018)).all() and env.finger_gap_m < 0.022:
        way_m = goal_position(env)[1] - handle_position(env)[1] - 0.01
        return np.array([offset[0], max(way_m, -PULL_M), offset[2]]), CLOSE
    return _reach(env, offset, width_m=0.012, reach_yz=(0.012, 0.012))


def _push(
    env: TabletopEnv, subject: np.ndarray, goal: np.ndarray, reach_m: float, height_m: float
) -> tuple[np.ndarray, float]:
    """Push `subject` towards `goal` from behind with closed fingers at `height_m`."""
    eef = env.eef_position()
    way = goal[:2] - subject[:2]
    way_m = float(np.hypot(*way))
    along = way / max(way_m, 1e-6)
    across = np.array([-along[1], along[0]])
    from_subject = eef[:2] - subject[:2]
    behind_m, aside_m = -float(from_subject @ along), float(from_subject @ across)
    low = eef[2] < height_m + 0.012 and env.finger_gap_m < 0.02
    if low and reach_m - 0.012 < behind_m < reach_m + 0.030 and abs(aside_m) < 0.015:
        forward_m = min(way_m + max(0.0, behind_m - reach_m), PUSH_M)
        straight = 1.0 - abs(aside_m) / 0.020
        planar = along * (forward_m * straight) - across * (1.2 * aside_m)
        return np.array([*planar, height_m - eef[2]]), CLOSE
    start = subject[:2] - along * (reach_m + 0.014)
    offset = np.array([*(start - eef[:2]), height_m - eef[2]])
    return _approach(offset, eef[2], HOVER_M, free_m=0.006), CLOSE


def _press(env: TabletopEnv) -> tuple[np.ndarray, float]:
    # The tips reach 10 mm below the grasp point and go well below the pressed cap's top.
    eef = env.eef_position()
    offset = goal_position(env) + np.array([0.0, 0.0, 0.010 - 0.004]) - eef
    return _approach(offset, eef[2], HOVER_M), CLOSE
