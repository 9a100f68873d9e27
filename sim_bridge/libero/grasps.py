"""Where a hand can take hold of a thing, and what stands in the way: from collision shapes alone.

Every shape counts as the box that MuJoCo bounds it with. Only objects and fixtures of the task
count, not the robot, the table or the floor. Axis suffixes: N shapes, 8 corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim_bridge.libero.env import LiberoEnv


def _grid(*axes: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


SIGNS_83 = _grid((-1.0, 1.0), (-1.0, 1.0), (-1.0, 1.0))
SIDES = ((0.0, 1.0), (0.0, -1.0), (-1.0, 0.0), (1.0, 0.0))  # of a rim, in order of preference
YAWS_RAD = np.deg2rad([0, 15, -15, 30, -30, 45, -45, 60, -60, 75, -75, 90])
TURN_M = 0.01  # width that a radian of turning is worth
RIM_DEPTH_M = 0.019  # from the rim's top down to the grasp point
DEPTH_M = 0.020  # from a solid thing's top down to the grasp point; the palm is 30 mm above that
REACH_M = 0.76  # from the robot's base; further out the elbow jams at its limit
REACH_POINTS_PER_M = 1000  # blocked points of the hand that a metre further out is worth
TIP_M = 0.013  # the finger tips reach this far below the grasp point
# What must be free around a rim, from the grasp point: outwards, across, up. Where the outer finger
# stands when open and where it closes; and the palm.
FINGER_P3 = _grid(np.linspace(0.004, 0.054, 11), (-0.010, 0.0, 0.010), (-TIP_M, 0.0, 0.02))
PALM_P3 = _grid(np.linspace(-0.1, 0.1, 9), (-0.02, 0.02), (0.04, 0.08, 0.12))
HAND_P3 = np.concatenate([FINGER_P3, PALM_P3])
HAND_SIZE_M = float(np.linalg.norm(HAND_P3, axis=1).max())


@dataclass(frozen=True, slots=True)
class Grasp:
    """position: of the grasp point between the finger tips, f64[3], m, world. yaw_rad: of the hand;
    at 0 the fingers close along the world's y. width_m: of what is between them.
    """

    position: np.ndarray
    yaw_rad: float
    width_m: float

    @property
    def closing_axis(self) -> np.ndarray:
        """Along which the fingers close, f64[2], world."""
        return np.array([-np.sin(self.yaw_rad), np.cos(self.yaw_rad)])


@dataclass(frozen=True, slots=True)
class Boxes:
    """Around N collision shapes: centres f64[N, 3] and half sides f64[N, 3], m; box to world."""

    centre_N3: np.ndarray
    rotation_N33: np.ndarray
    half_N3: np.ndarray

    @property
    def corners_N83(self) -> np.ndarray:
        """f64[N, 8, 3], m, world."""
        local_N83 = self.half_N3[:, None] * SIGNS_83
        return self.centre_N3[:, None] + local_N83 @ self.rotation_N33.transpose(0, 2, 1)


def boxes(env: LiberoEnv, names: list[str]) -> Boxes:
    """Of the objects and fixtures `names`."""
    model, data = env.model, env.data
    roots = [model.body_rootid[env.robosuite.obj_body_id[name]] for name in names]
    solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    picked = np.flatnonzero(solid & np.isin(model.body_rootid[model.geom_bodyid], roots))
    rotation_N33 = data.geom_xmat[picked].reshape(-1, 3, 3)
    aabb_N6 = model.geom_aabb[picked]
    centre_N3 = data.geom_xpos[picked] + np.einsum("nij,nj->ni", rotation_N33, aabb_N6[:, :3])
    return Boxes(centre_N3, rotation_N33, aabb_N6[:, 3:])


def corners(env: LiberoEnv, name: str) -> np.ndarray:
    """Of the boxes of one object or fixture, f64[N, 8, 3], m, world."""
    return boxes(env, [name]).corners_N83


def find_grasp(env: LiberoEnv, name: str) -> Grasp:
    """How to take hold of object `name` where it is now: a hollow one by its rim, others across."""
    corners_N83 = corners(env, name)
    low_N3, high_N3 = corners_N83.min(axis=1), corners_N83.max(axis=1)
    middle = (low_N3.min(axis=0) + high_N3.max(axis=0)) / 2
    over_middle = ((low_N3 < middle) & (middle < high_N3))[:, :2].all(axis=1)
    if (over_middle & (high_N3[:, 2] > middle[2])).any():
        return _across(corners_N83, middle[2])
    return _by_rim(env, name, corners_N83, middle)


def tallest_between(
    env: LiberoEnv, start: np.ndarray, end: np.ndarray, radius_m: float, ignored: str
) -> float:
    """Top (m, world) of the tallest thing but `ignored` within `radius_m` of the straight way from
    `start` to `end` (f64[3], only x and y count); -inf where the way is free.
    """
    corners_N83 = _others(env, ignored).corners_N83
    low_N2 = corners_N83[:, :, :2].min(axis=1) - radius_m
    high_N2 = corners_N83[:, :, :2].max(axis=1) + radius_m
    way = (end - start)[:2]
    way = np.where(np.abs(way) < 1e-9, 1e-9, way)
    enter_N2, leave_N2 = (low_N2 - start[:2]) / way, (high_N2 - start[:2]) / way
    first_N = np.minimum(enter_N2, leave_N2).max(axis=1)
    last_N = np.maximum(enter_N2, leave_N2).min(axis=1)
    met_N = (first_N <= last_N) & (last_N >= 0.0) & (first_N <= 1.0)
    return float(corners_N83[met_N, :, 2].max(initial=-np.inf))


def _others(env: LiberoEnv, name: str) -> Boxes:
    return boxes(env, [other for other in env.robosuite.obj_body_id if other != name])


def _across(corners_N83: np.ndarray, middle_m: float) -> Grasp:
    """At the yaw that makes the thing narrow with little turning."""
    top_N, bottom_N = corners_N83[:, :, 2].max(axis=1), corners_N83[:, :, 2].min(axis=1)
    height_m = max(middle_m, top_N.max() - DEPTH_M, bottom_N.min() + TIP_M)
    met_N = (bottom_N <= height_m) & (height_m <= top_N)
    if not met_N.any():
        met_N[:] = True
    points = corners_N83[met_N].reshape(-1, 3)[:, :2]
    best, best_cost = None, np.inf
    for yaw_rad in YAWS_RAD:
        axes_22 = np.array(
            [[np.cos(yaw_rad), np.sin(yaw_rad)], [-np.sin(yaw_rad), np.cos(yaw_rad)]]
        )
        along = points @ axes_22.T
        low, high = along.min(axis=0), along.max(axis=0)
        cost = high[1] - low[1] + TURN_M * abs(yaw_rad)
        if cost < best_cost - 1e-4:
            centre = (low + high) / 2 @ axes_22
            best = Grasp(np.array([*centre, height_m]), float(yaw_rad), high[1] - low[1])
            best_cost = cost
    assert best is not None
    return best


def _by_rim(env: LiberoEnv, name: str, corners_N83: np.ndarray, middle: np.ndarray) -> Grasp:
    """At the side of the rim where the hand finds room, within reach."""
    others = _others(env, name)
    centre_N3 = corners_N83.mean(axis=1)
    base = env.data.body("robot0_base").xpos
    best, best_cost = None, np.inf
    for side in np.array(SIDES):
        grasp = _at_side(corners_N83, centre_N3, middle, side)
        too_far_m = max(0.0, float(np.hypot(*(grasp.position - base)[:2])) - REACH_M)
        cost = REACH_POINTS_PER_M * too_far_m + _blocked(others, grasp.position, side)
        if cost < best_cost:
            best, best_cost = grasp, cost
        if cost == 0.0:
            break
    assert best is not None
    return best


def _at_side(
    corners_N83: np.ndarray, centre_N3: np.ndarray, middle: np.ndarray, side: np.ndarray
) -> Grasp:
    along_N = (centre_N3 - middle)[:, :2] @ side
    wall = int(along_N.argmax())
    top_m = corners_N83[wall, :, 2].max()
    position = np.array([*(middle[:2] + along_N[wall] * side), top_m - RIM_DEPTH_M])
    return Grasp(position, 0.0 if side[0] == 0.0 else np.pi / 2, 0.004)


def _blocked(others: Boxes, position: np.ndarray, side: np.ndarray) -> int:
    """How many points of the hand at the `side` (f64[2]) of a rim are inside something."""
    across = side[::-1]
    points_P3 = position + HAND_P3 @ np.array(
        [[side[0], side[1], 0.0], [across[0], across[1], 0.0], [0.0, 0.0, 1.0]]
    )
    away_N = np.linalg.norm(others.centre_N3 - position, axis=1)
    near = away_N < HAND_SIZE_M + np.linalg.norm(others.half_N3, axis=1)
    local_NP3 = (points_P3 - others.centre_N3[near, None]) @ others.rotation_N33[near]
    inside_NP = (np.abs(local_NP3) < others.half_N3[near, None]).all(axis=2)
    return int(inside_NP.any(axis=0).sum())
