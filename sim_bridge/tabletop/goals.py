"""Success predicates: pure functions of the physics state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim_bridge.tabletop.tasks import GOALS

if TYPE_CHECKING:
    from sim_bridge.tabletop.env import TabletopEnv

CUBE_M = 0.04
FIXTURE_XY = {
    "tray": (0.125, 0.122),
    "plate": (-0.005, 0.118),
    "mat_left": (-0.12, -0.115),
    "mat_right": (0.12, -0.115),
}
SURFACE_Z_M = {"tray": 0.003, "plate": 0.006}
HANDLE_CLOSED = np.array([-0.13, 0.0625, 0.027])  # centre of the handle, drawer closed
BUTTON_TOP = np.array([-0.14, -0.06, 0.026])  # centre of the cap's top, button up
DRAWER_OPEN_M, DRAWER_CLOSED_M = 0.045, 0.005
BUTTON_DOWN_M = 0.007
REST_MPS = 0.04
HELD_GAP_M = 0.047  # fingers nearer than this touch a cube between them


def handle_position(env: TabletopEnv) -> np.ndarray:
    """Centre of the drawer's handle, f64[3], m, world."""
    return HANDLE_CLOSED - (0.0, env.drawer_m, 0.0)


def goal_position(env: TabletopEnv) -> np.ndarray:
    """Where the task's subject has to go: centre f64[3], m, world."""
    goal = GOALS[env.task.slug]
    if goal.target in SURFACE_Z_M:
        return np.array([*FIXTURE_XY[goal.target], SURFACE_Z_M[goal.target] + CUBE_M / 2])
    if goal.subject == "puck":
        return np.array([*FIXTURE_XY[goal.target], 0.012])
    if goal.subject == "handle":
        return HANDLE_CLOSED - (0.0, 0.055 if goal.target == "open" else 0.0, 0.0)
    if goal.subject == "button":
        return BUTTON_TOP - (0.0, 0.0, 0.011)
    return env.position(goal.target) + np.array([0.0, 0.0, CUBE_M])


def subject_position(env: TabletopEnv) -> np.ndarray:
    """The manipulated cube, puck, handle or button: centre (button: top) f64[3], m, world."""
    subject = GOALS[env.task.slug].subject
    if subject == "handle":
        return handle_position(env)
    if subject == "button":
        return BUTTON_TOP - (0.0, 0.0, env.button_m)
    return env.position(subject)


def is_success(env: TabletopEnv) -> bool:
    """Whether the state fulfils the task: placed cubes are released and at rest."""
    goal = GOALS[env.task.slug]
    if goal.subject == "handle":
        opened = env.drawer_m
        return opened > DRAWER_OPEN_M if goal.target == "open" else opened < DRAWER_CLOSED_M
    if goal.subject == "button":
        return env.button_m > BUTTON_DOWN_M
    at = env.position(goal.subject)
    offset = at - goal_position(env)
    if env.speed_mps(goal.subject) > REST_MPS:
        return False
    if goal.subject == "puck":
        return bool(np.hypot(*offset[:2]) < 0.02)
    if is_held(env, at):
        return False
    if goal.target == "tray":
        return bool(np.abs(offset[:2]).max() < 0.04 and abs(offset[2]) < 0.006)
    reach_m = 0.035 if goal.target == "plate" else 0.022
    return bool(np.hypot(*offset[:2]) < reach_m and abs(offset[2]) < 0.006)


def is_held(env: TabletopEnv, cube: np.ndarray) -> bool:
    """Whether the fingers are closed on the cube with centre `cube` (f64[3], m, world)."""
    local = env.eef_rotation().T @ (cube - env.eef_position())
    between = abs(local[0]) < 0.02 and abs(local[1]) < 0.026 and -0.03 < local[2] < 0.045
    return bool(between and env.finger_gap_m < HELD_GAP_M)
