"""Perturbations of what things are, on the tabletop: other shapes, other colours, more things.

Success looks at positions alone, so a changed thing keeps its height and its place.
"""

from __future__ import annotations

import numpy as np

from sim_bridge.perturb.axis import Axis, Change
from sim_bridge.robot import BridgeError
from sim_bridge.tabletop.env import TabletopEnv
from sim_bridge.tabletop.scene import CUBES
from sim_bridge.tabletop.tasks import GOALS

PROPORTION = 0.25  # largest change of an object's breadth
PALER = 0.35  # by which an object's colour goes towards grey: it keeps the name of its colour
SHOWN = 2  # distractors at strength 1, of those in the scene
DISTRACTOR_HALF_M = 0.014
TRIES = 3000

_SHAPES = (
    'type="box" size="0.014 0.014 0.014"',
    'type="cylinder" size="0.014 0.014"',
    'type="box" size="0.011 0.014 0.014"',
    'type="cylinder" size="0.011 0.014"',
)
# Out of everybody's way until an episode starts.
DISTRACTORS = "".join(
    f'<body name="distractor_{k}" pos="{0.3 + 0.05 * k} 0.4 0.0145">'
    f'<freejoint name="distractor_{k}"/><geom name="distractor_{k}" {shape} mass="0.04"/></body>'
    for k, shape in enumerate(_SHAPES)
)
# Where no distractor stands: low x, low y, high x, high y, m, of fixtures and the room they need.
KEPT_FREE = np.array(
    [
        [-0.20, -0.01, -0.06, 0.17],  # cabinet, and its drawer pulled out
        [0.055, 0.06, 0.195, 0.18],  # tray
        [-0.065, 0.06, 0.055, 0.18],  # plate
        [-0.19, -0.105, -0.09, -0.015],  # button
    ]
)
PUSHED_OVER = np.array([[-0.18, -0.175, 0.18, -0.075]])  # mats, puck and the way between them
TABLE_LOW_XY, TABLE_HIGH_XY = np.array([-0.175, -0.175]), np.array([0.185, 0.20])
ROOM_XY = np.array([0.085, 0.05])  # from a cube or the puck: an open hand fits between


class Object(Axis):
    """The thing to be moved has another shape: a cylinder or a block, paler and less square."""

    def __init__(self, strength: float, env: TabletopEnv) -> None:
        super().__init__(strength)
        self._env = env

    def start(self, rng: np.random.Generator) -> list[Change]:
        """Draws shape, breadth and colour."""
        return _reshape(self._env, GOALS[self._env.task.slug].subject, rng, self.strength)


class Receptacle(Axis):
    """The place where the thing goes has another colour; plate, mats and cubes another shape."""

    def __init__(self, strength: float, env: TabletopEnv) -> None:
        super().__init__(strength)
        self._env = env

    def start(self, rng: np.random.Generator) -> list[Change]:
        """Draws shape and colour."""
        env, target = self._env, GOALS[self._env.task.slug].target
        model, kinds = env.scene.model, env.scene.mujoco.mjtGeom
        if target in CUBES:
            return _reshape(env, target, rng, self.strength)
        colour = rng.uniform(0.0, 1.0, 3)
        if target.startswith("mat"):
            geoms = [model.geom(target).id]
            shape, size = kinds.mjGEOM_CYLINDER, (0.035, 0.0005, 0.0)
        else:
            geoms = np.flatnonzero(model.geom_bodyid == model.body(target).id).tolist()
            shape, size = kinds.mjGEOM_BOX, (0.042, 0.042, 0.003)
        share = min(1.0, 0.8 * self.strength)
        changes = []
        for geom in geoms:
            rgb = (1.0 - share) * model.geom_rgba[geom, :3] + share * colour
            changes.append(Change(model.geom_rgba, geom, [*rgb, 1.0]))
        if target != "tray":
            changes += _shape(env, geoms[0], shape, np.array(size))
        return changes


class Distractor(Axis):
    """Things of other shapes and colours stand about, clear of the task's own."""

    def __init__(self, strength: float, env: TabletopEnv) -> None:
        super().__init__(strength)
        self._env = env

    def start(self, rng: np.random.Generator) -> list[Change]:
        """Draws which, where and their colours. Raises BridgeError where there is no room."""
        env = self._env
        scene, data, model = env.scene, env.data, env.scene.model
        count = int(np.clip(round(SHOWN * self.strength), 1, len(_SHAPES)))
        placed: list[np.ndarray] = []
        changes = []
        for k in rng.permutation(len(_SHAPES))[:count]:
            xy = self._find_room(rng, placed)
            if xy is None:
                break
            placed.append(xy)
            joint = model.joint(f"distractor_{k}")
            at, yaw = int(joint.qposadr[0]), rng.uniform(-np.pi, np.pi)
            data.qpos[at : at + 7] = [
                *(*xy, DISTRACTOR_HALF_M + 1e-4),
                *(np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)),
            ]
            data.qvel[joint.dofadr[0] :][:6] = 0.0
            geom = model.geom(f"distractor_{k}").id
            changes.append(Change(model.geom_rgba, geom, [*rng.uniform(0.0, 1.0, 3), 1.0]))
        if not placed:
            raise BridgeError(f"distractor: no room in this init state of {env.task.slug}")
        scene.mujoco.mj_kinematics(model, data)
        return changes

    def _find_room(self, rng: np.random.Generator, placed: list[np.ndarray]) -> np.ndarray | None:
        env = self._env
        task_needs_way = GOALS[env.task.slug].subject == "puck"
        kept_free = np.concatenate([KEPT_FREE, PUSHED_OVER]) if task_needs_way else KEPT_FREE
        things = np.array([env.position(name)[:2] for name in (*CUBES, "puck")])
        for _ in range(TRIES):
            xy = rng.uniform(TABLE_LOW_XY, TABLE_HIGH_XY)
            if ((kept_free[:, :2] < xy) & (xy < kept_free[:, 2:])).all(axis=1).any():
                continue
            if (np.abs(things - xy) < ROOM_XY).all(axis=1).any():
                continue
            if all(np.hypot(*(xy - other)) > 0.045 for other in placed):
                return xy
        return None


def _reshape(
    env: TabletopEnv, name: str, rng: np.random.Generator, strength: float
) -> list[Change]:
    """A cube or the puck as a cylinder or a block of the same height and about the same colour."""
    model, kinds = env.scene.model, env.scene.mujoco.mjtGeom
    geom = model.geom(name).id
    height_m = model.geom_size[geom, 2 if name in CUBES else 1]
    breadth_m = model.geom_size[geom, 0] * (0.8 if name == "puck" else 1.0)
    scale = 1.0 + min(0.4, PROPORTION * strength) * rng.uniform(-1.0, 1.0, 2)
    # A puck that is round already becomes a block.
    if name in CUBES and rng.random() < 0.5:
        shape, size = kinds.mjGEOM_CYLINDER, [breadth_m * scale[0], height_m, 0.0]
    else:
        shape, size = kinds.mjGEOM_BOX, [*(breadth_m * scale), height_m]
    rgb = model.geom_rgba[geom, :3]
    rgb = rgb + min(0.8, PALER * strength) * rng.uniform(0.3, 1.0) * (0.5 - rgb)
    return [
        *_shape(env, geom, shape, np.array(size)),
        Change(model.geom_rgba, geom, [*rgb, 1.0]),
    ]


def _shape(env: TabletopEnv, geom: int, shape: int, size: np.ndarray) -> list[Change]:
    """Another shape of size f64[3], with the bounds that collisions are looked for in."""
    model = env.scene.model
    is_round = shape == env.scene.mujoco.mjtGeom.mjGEOM_CYLINDER
    half = np.array([size[0], size[0], size[1]]) if is_round else size
    radius_m = np.hypot(size[0], size[1]) if is_round else np.linalg.norm(size)
    return [
        Change(model.geom_type, geom, int(shape)),
        Change(model.geom_size, geom, size),
        Change(model.geom_rbound, geom, radius_m),
        Change(model.geom_aabb, geom, [0.0, 0.0, 0.0, *half]),
    ]
