"""Scripted expert for LIBERO's pick-and-place tasks, for demonstrations and relabelling.

The action depends on the simulator's present state alone, never on a counter or on the past, so it
can label any state a learned policy drifts into: a dropped bowl, a missed grasp, a wrong turn.
Where things are and what shape they have it reads from the simulator; what goes where, from the
task's goal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from agent.wire.errors import ConfigError
from sim_bridge.libero.env import LiberoEnv
from sim_bridge.libero.grasps import TIP_M, Grasp, corners, find_grasp, tallest_between

TRANSLATION_M, ROTATION_RAD = 0.05, 0.5  # of a unit action
OPEN, CLOSE = -1.0, 1.0
GAIN = 2.0  # of the way left, asked for in one step; less is lost in the joints' friction
HOME = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # hand to world, yaw 0
WIDE_M = 0.076  # gap of the open fingers
CONE_SLOPE = 1.5  # height kept over the goal per metre of horizontal distance
WALL_SLOPE = 4.0  # the same, where the goal has walls
SIDEWAYS = 0.1  # share of the sideways move made when not clear: rising alone can jam the arm
CLEAR_M = 0.025  # kept above what is passed
HAND_REACH_M, HELD_REACH_M = 0.05, 0.06  # half the breadth of the open hand, of a thing in it
ROOM_M = 0.018  # how far from the middle between the fingers a thin thing may be when they close
TURN_M = 0.05  # horizontal distance that a radian still to turn counts as
SQUEEZE_M = 0.02  # fingers told to be this much closer than they are grip firmly
ELBOW = 3  # joint of the arm; its limit is -0.07 rad, the arm straight
STRAIGHT_RAD, BEND_RAD = -0.15, 0.4  # where tilts are let be, and how much further they count fully
RISE_M = 0.12  # over what was let go


class Place(NamedTuple):
    """name: of an object, a fixture or a region of one. position: f64[3], m, world."""

    name: str
    position: np.ndarray


def subject_and_goal(env: LiberoEnv) -> tuple[Place, Place]:
    """What the task moves and where it goes.

    Raises ConfigError unless the task is to put one object onto or into another.
    """
    goals = env.robosuite.parsed_problem["goal_state"]
    if len(goals) != 1 or goals[0][0] not in ("on", "in"):
        raise ConfigError(
            f"{env.task.slug}: expected a goal with one object on or in another, got {goals}; "
            "the scripted expert knows the tasks of libero_spatial and libero_object"
        )
    _, subject, goal = goals[0]
    if goal in env.robosuite.obj_body_id:
        return Place(subject, env.position(subject)), Place(goal, env.position(goal))
    site = env.data.site_xpos[env.model.site(goal).id].copy()
    return Place(subject, env.position(subject)), Place(goal, site)


def expert_action(env: LiberoEnv) -> np.ndarray:
    """The expert's action f32[7], each in [-1, 1], in the state `env` is in.

    Raises ConfigError for a task that `subject_and_goal` does not know.
    """
    subject, goal = subject_and_goal(env)
    done = bool(env.robosuite._check_success())
    turn = _turn_to(env, _hand_yaw(env))
    if _is_held(env, subject.name):
        move, gripper = _carry(env, subject, goal, done)
    elif done or _is_falling(env, subject.name):
        over_m = corners(env, subject.name)[:, :, 2].max() + RISE_M - env.eef_position()[2]
        move, gripper = np.array([0.0, 0.0, max(0.0, over_m)]), OPEN
    else:
        grasp = find_grasp(env, subject.name)
        turn = _turn_to(env, grasp.yaw_rad)
        move, gripper = _reach(env, subject.name, grasp, float(np.linalg.norm(turn)))
    action_A = np.empty(7, np.float32)
    action_A[:3] = np.clip(move * (GAIN / TRANSLATION_M), -1.0, 1.0)
    turn[:2] *= _tilt_share(env)
    action_A[3:6] = np.clip(turn * (GAIN / ROTATION_RAD), -1.0, 1.0)
    action_A[6] = gripper
    return action_A


def _reach(env: LiberoEnv, subject: str, grasp: Grasp, turn_rad: float) -> tuple[np.ndarray, float]:
    """Bring the open hand over the thing, down, and close the fingers."""
    eef, gap_m = env.eef_position(), _gap_m(env)
    offset = grasp.position - eef
    axis = grasp.closing_axis
    along_m, across_m = abs(offset[:2] @ axis), abs(offset[0] * axis[1] - offset[1] * axis[0])
    room_m = min(ROOM_M, (WIDE_M - grasp.width_m) / 2)
    # Fingers already on their way tolerate more, else noise makes them open again.
    slack = 1.6 if gap_m < WIDE_M - 0.006 else 1.0
    enclosed = along_m < min(slack * room_m, gap_m / 2 + 0.004) and across_m < slack * ROOM_M
    level = -0.008 < offset[2] < 0.008 if slack == 1.0 else -0.012 < offset[2] < 0.012
    if enclosed and level and turn_rad < slack * 0.35:
        return offset, CLOSE
    top_m = corners(env, subject)[:, :, 2].max()
    passed_m = max(top_m, tallest_between(env, eef, grasp.position, HAND_REACH_M, subject))
    hover_m = passed_m + TIP_M + CLEAR_M
    away_m = float(np.hypot(offset[0], offset[1])) + TURN_M * max(0.0, turn_rad - 0.15)
    move = _approach(offset, away_m, eef[2], hover_m, 0.6 * room_m, CONE_SLOPE, SIDEWAYS)
    if gap_m < min(grasp.width_m + 0.03, WIDE_M - 0.006):
        # Wait above until the hand is open.
        move[2] = max(move[2], min(0.0, top_m + TIP_M + 0.005 - eef[2]))
    return move, OPEN


def _carry(env: LiberoEnv, subject: Place, goal: Place, done: bool) -> tuple[np.ndarray, float]:
    """Lift what is held over its goal, lower it and let go."""
    place, near_m, slope = _put_down(env, goal)
    away = place - subject.position
    away_m = float(np.hypot(away[0], away[1]))
    if done or (away_m < near_m and away[2] > -0.02):
        return np.zeros(3), OPEN
    if not _is_gripped(env):
        return np.zeros(3), CLOSE
    bottom_m = corners(env, subject.name)[:, :, 2].min()
    passed_m = tallest_between(env, subject.position, place, HELD_REACH_M, subject.name)
    hover_m = passed_m + CLEAR_M
    return _approach(away, away_m, bottom_m, hover_m, 0.6 * near_m, slope), CLOSE


def _approach(
    offset: np.ndarray,
    away_m: float,
    height_m: float,
    hover_m: float,
    free_m: float,
    slope: float,
    sideways: float = 0.0,
) -> np.ndarray:
    """Move along a cone down to a goal `offset` away (f64[3], m): f64[3], m.

    Above the goal the way down is free within `free_m`; further off (`away_m`) the hand must be
    higher, up to `hover_m`. Below the cone it rises first, and moves sideways only as fast as it
    gets clear. `height_m` is the present height of what must clear obstacles.
    """
    goal_m = height_m + offset[2]
    cone_m = goal_m + max(0.0, slope * (away_m - free_m))
    wanted_m = max(goal_m, min(cone_m, hover_m))
    clear = np.clip(1.0 - (wanted_m - height_m - 0.005) / 0.02, sideways, 1.0)
    return np.array([offset[0] * clear, offset[1] * clear, wanted_m - height_m])


def _put_down(env: LiberoEnv, goal: Place) -> tuple[np.ndarray, float, float]:
    """Where the subject's origin is carried, f64[3], m; how near (m) it may be let go; how steep
    the way down is.
    """
    region = env.robosuite.object_sites_dict.get(goal.name)
    if region is None:
        return goal.position + np.array([0.0, 0.0, 0.006]), 0.018, CONE_SLOPE
    matrix = env.data.site_xmat[env.model.site(goal.name).id].reshape(3, 3)
    top_m = np.abs(matrix @ region.size)[2]
    return goal.position + np.array([0.0, 0.0, top_m - 0.02]), 0.025, WALL_SLOPE


def _is_held(env: LiberoEnv, subject: str) -> bool:
    """Whether the fingers press on the subject from both sides, or the robot alone bears it."""
    model, contact = env.model, env.data.contact
    touching = _touches(env, subject)
    # frame: rows are the contact's axes, its normal first
    sideways = np.abs(contact.frame[:, :3] @ env.eef_rotation()[:, 0]) > 0.6
    sides = []
    for finger in ("left_finger", "right_finger"):
        names = env.robosuite.robots[0].gripper.important_geoms[finger]
        pressed = np.isin(contact.geom, [model.geom(name).id for name in names])
        sides.append(((pressed & touching[:, ::-1]).any(axis=1) & sideways).any())
    robot = model.body_rootid[model.body("robot0_base").id]
    by_robot = model.body_rootid[model.geom_bodyid[contact.geom]] == robot
    met = touching.any(axis=1)
    return all(sides) or bool(met.any() and by_robot[met].any(axis=1).all())


def _is_falling(env: LiberoEnv, subject: str) -> bool:
    """Whether the subject touches nothing."""
    return not _touches(env, subject).any()


def _touches(env: LiberoEnv, subject: str) -> np.ndarray:
    """Of every contact's two shapes, whether it is the subject's, bool[C, 2]."""
    model = env.model
    root = model.body_rootid[env.robosuite.obj_body_id[subject]]
    return model.body_rootid[model.geom_bodyid[env.data.contact.geom]] == root


def _gap_m(env: LiberoEnv) -> float:
    """Between the fingers."""
    fingers = env.data.qpos[env.robosuite.robots[0]._ref_gripper_joint_pos_indexes]
    return float(fingers[0] - fingers[1])


def _is_gripped(env: LiberoEnv) -> bool:
    """Whether the fingers that hold something have been told to close so far that they hold it."""
    told = env.data.ctrl[env.robosuite.robots[0]._ref_joint_gripper_actuator_indexes]
    return bool(told[0] - told[1] < max(0.001, _gap_m(env) - SQUEEZE_M))


def _hand_yaw(env: LiberoEnv) -> float:
    axis = env.eef_rotation()[:, 0]
    return float(np.arctan2(-axis[0], axis[1]))


def _tilt_share(env: LiberoEnv) -> float:
    """Share of a tilt that is set right. With a straight elbow the controller's torques that do it
    hold the hand back, so it comes in first.
    """
    elbow_rad = env.data.qpos[env.robosuite.robots[0]._ref_joint_pos_indexes[ELBOW]]
    return float(np.clip((STRAIGHT_RAD - elbow_rad) / BEND_RAD, 0.02, 1.0))


def _turn_to(env: LiberoEnv, yaw_rad: float) -> np.ndarray:
    """Rotation vector (rad, world) that takes the hand upright to `yaw_rad`."""
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    wanted = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]) @ HOME
    quat, turn = np.empty(4), np.empty(3)
    env.mujoco.mju_mat2Quat(quat, (wanted @ env.eef_rotation().T).reshape(9))
    env.mujoco.mju_quat2Vel(turn, quat, 1.0)
    return turn
