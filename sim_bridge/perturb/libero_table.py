"""What stands where in a LIBERO scene: which things can be moved, and where there is room."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim_bridge.libero.env import LiberoEnv
from sim_bridge.libero.grasps import corners

MARGIN_M = 0.01  # between two things, or the rectangles around them
AROUND_M = 0.12  # how far from the outermost things there may be a new one
TRIES = 300


class Table:
    """The scene as it is now. Rectangles are f64[4]: low x, low y, high x, high y, m, world."""

    def __init__(self, env: LiberoEnv) -> None:
        # Contacts and the shapes' poses are of the state before; what decides the future stays.
        warmstart = env.data.qacc_warmstart.copy()
        env.mujoco.mj_forward(env.model, env.data)
        env.data.qacc_warmstart[:] = warmstart
        self._env = env
        self.rectangles = {name: _rectangle(env, name) for name in env.robosuite.obj_body_id}
        self.resting = [name for name in env.robosuite.objects_dict if self._rests(name)]
        heights = [corners(env, name)[:, :, 2].min() for name in self.resting]
        self.height_m = float(min(heights, default=env.eef_position()[2]))

    def fits(self, rectangle: np.ndarray, but: str = "", taken: Sequence[np.ndarray] = ()) -> bool:
        """Whether nothing else is there."""
        others = [each for name, each in self.rectangles.items() if name != but]
        for low_x, low_y, high_x, high_y in (*others, *taken):
            apart_x = rectangle[0] > high_x + MARGIN_M or rectangle[2] < low_x - MARGIN_M
            apart_y = rectangle[1] > high_y + MARGIN_M or rectangle[3] < low_y - MARGIN_M
            if not (apart_x or apart_y):
                return False
        return True

    def find_room(
        self, rng: np.random.Generator, half_m: float, taken: Sequence[np.ndarray]
    ) -> np.ndarray | None:
        """A place f64[2] among the things for one with sides of 2 `half_m`, or None."""
        around = np.array([self.rectangles[name] for name in self.resting])
        if not len(around):
            return None
        low, high = around[:, :2].min(axis=0) - AROUND_M, around[:, 2:].max(axis=0) + AROUND_M
        for _ in range(TRIES):
            xy = rng.uniform(low, high)
            if self.fits(np.array([*(xy - half_m), *(xy + half_m)]), taken=taken):
                return xy
        return None

    def find_way(self, name: str, rng: np.random.Generator, furthest_m: float) -> np.ndarray | None:
        """A way f64[2] that thing `name` has room to go: half to all of `furthest_m`, or, where
        there is no room for that, a fifth to half of it.
        """
        for trial in range(2 * TRIES):
            share = rng.uniform(0.5, 1.0) if trial < TRIES else rng.uniform(0.2, 0.5)
            angle_rad, way_m = rng.uniform(-np.pi, np.pi), share * furthest_m
            way = way_m * np.array([np.cos(angle_rad), np.sin(angle_rad)])
            if self.fits(self.rectangles[name] + np.tile(way, 2), but=name):
                return way
        return None

    def shift(self, name: str, way: np.ndarray) -> None:
        """Shifts a resting thing, as it stands, at rest."""
        env = self._env
        joint = env.model.joint(env.model.body(self._body(name)).jntadr[0])
        place = slice(joint.qposadr[0], joint.qposadr[0] + 2)
        env.data.qpos[place] += way
        env.data.qvel[joint.dofadr[0] :][:6] = 0.0
        env.mujoco.mj_kinematics(env.model, env.data)
        env.show_moved(place)
        self.rectangles[name] += np.tile(way, 2)

    def _rests(self, name: str) -> bool:
        """Whether the scene alone bears the thing, and it bears nothing."""
        env = self._env
        model, contact = env.model, env.data.contact
        root = model.body_rootid[self._body(name)]
        of_C2 = model.body_rootid[model.geom_bodyid[contact.geom]]
        touching = (of_C2 == root).any(axis=1)
        things = {model.body_rootid[body] for body in env.robosuite.obj_body_id.values()}
        things.add(model.body_rootid[model.body("robot0_base").id])
        others = {int(each) for each in of_C2[touching].ravel()} - {int(root)}
        return bool(touching.any()) and not others & {int(each) for each in things}

    def _body(self, name: str) -> int:
        return int(self._env.robosuite.obj_body_id[name])


def _rectangle(env: LiberoEnv, name: str) -> np.ndarray:
    points = corners(env, name).reshape(-1, 3)
    if not len(points):  # a region without a shape
        point = env.position(name)[:2]
        return np.array([*point, *point])
    return np.array([*points.min(axis=0)[:2], *points.max(axis=0)[:2]])
