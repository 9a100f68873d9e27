"""Perturbations of where things are, on the tabletop: the hand, the object, and it once more."""

from __future__ import annotations

import numpy as np

from sim_bridge.perturb.axis import Axis, Change, unit_vector
from sim_bridge.robot import BridgeError
from sim_bridge.tabletop.env import TARGET_HIGH, TARGET_LOW, TabletopEnv
from sim_bridge.tabletop.goals import is_held
from sim_bridge.tabletop.init_states import (
    CUBE_GAP_X_M,
    CUBE_GAP_Y_M,
    CUBE_HIGH_XY,
    CUBE_LOW_XY,
    HANDLE_CORNER_XY,
    PUCK_XY,
)
from sim_bridge.tabletop.scene import CUBES
from sim_bridge.tabletop.tasks import GOALS

HAND_SHIFT_M, HAND_TURN_RAD = 0.07, 0.35
# A cube or the puck starts up to so far outside of where init states have it, m.
CUBE_BEYOND_LOW_XY, CUBE_BEYOND_HIGH_XY = (0.015, 0.008), (0.020, 0.006)
PUCK_HALF_XY, PUCK_BEYOND_XY = (0.030, 0.010), (0.012, 0.010)
PUSHED_M = 0.05  # of the second move
MOVE_STEPS = (4, 10)
HAND_ROOM_M = 0.07  # from a hand that has come down
HAND_HIGH_M = 0.085
TRIES = 3000
TRIES_A_STEP = 50  # it is tried again at the next step


class StartPose(Axis):
    """The hand starts elsewhere, turned."""

    def __init__(self, strength: float, env: TabletopEnv) -> None:
        super().__init__(strength)
        self._env = env

    def start(self, rng: np.random.Generator) -> list[Change]:
        """Draws the displacement, half to all of its largest, and moves hand and servos."""
        scene, data = self._env.scene, self._env.data
        size, turn = self.strength * rng.uniform(0.5, 1.0, 2)
        pose = data.qpos[scene.hand_qpos].copy()
        pose[:2] += size * HAND_SHIFT_M * unit_vector(rng, 2)
        pose[5] += turn * HAND_TURN_RAD * rng.choice([-1.0, 1.0])
        pose = np.clip(pose, TARGET_LOW, TARGET_HIGH)
        data.qpos[scene.hand_qpos] = data.ctrl[:6] = pose
        hand = np.isin(scene.model.jnt_qposadr, scene.hand_qpos)
        data.qvel[scene.model.jnt_dofadr[hand]] = 0.0
        scene.mujoco.mj_kinematics(scene.model, data)
        return []


class Position(Axis):
    """The thing to be moved starts where no init state has it."""

    def __init__(self, strength: float, env: TabletopEnv) -> None:
        super().__init__(strength)
        self._env = env

    def start(self, rng: np.random.Generator) -> list[Change]:
        """Draws the place. Raises BridgeError where there is no room."""
        env, strength = self._env, self.strength
        subject = GOALS[env.task.slug].subject
        low, high = _usual(subject)
        for _ in range(TRIES):
            xy = rng.uniform(*_reach(subject, strength))
            if ((low < xy) & (xy < high)).all() or not _is_free(env, subject, xy):
                continue
            _put(env, subject, xy)
            return []
        raise BridgeError(f"position: no room in this init state of {env.task.slug}")


class Reposition(Axis):
    """Some steps into the episode the thing to be moved is shifted, once it lies free."""

    def __init__(self, strength: float, env: TabletopEnv) -> None:
        super().__init__(strength)
        self._env = env
        self._at_step = 0
        self._rng: np.random.Generator | None = None

    def start(self, rng: np.random.Generator) -> list[Change]:
        """Draws the step."""
        self._at_step = int(rng.integers(*MOVE_STEPS))
        self._rng = rng
        return []

    def before_step(self, step: int) -> None:
        """Moves it by half to all of the largest way, if it is due and not held."""
        env, rng = self._env, self._rng
        subject = GOALS[env.task.slug].subject
        if rng is None or step < self._at_step or env.success_now:
            return
        at = env.position(subject)
        if is_held(env, at) or at[2] > 0.03:
            return
        low, high = _reach(subject, 1.0)
        for _ in range(TRIES_A_STEP):
            way_m = self.strength * PUSHED_M * rng.uniform(0.5, 1.0) * unit_vector(rng, 2)
            xy = at[:2] + way_m
            if (xy > low).all() and (xy < high).all() and _is_free(env, subject, xy):
                _put(env, subject, xy)
                self._rng = None
                return


def _usual(subject: str) -> tuple[np.ndarray, np.ndarray]:
    """Where init states have it: corners f64[2], m, world."""
    if subject in CUBES:
        return np.array(CUBE_LOW_XY), np.array(CUBE_HIGH_XY)
    return np.subtract(PUCK_XY, PUCK_HALF_XY), np.add(PUCK_XY, PUCK_HALF_XY)


def _reach(subject: str, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Where a perturbation may put it: corners f64[2], m, world."""
    low, high = _usual(subject)
    if subject in CUBES:
        beyond_low, beyond_high = CUBE_BEYOND_LOW_XY, CUBE_BEYOND_HIGH_XY
    else:
        beyond_low = beyond_high = PUCK_BEYOND_XY
    return low - np.multiply(strength, beyond_low), high + np.multiply(strength, beyond_high)


def _is_free(env: TabletopEnv, subject: str, xy: np.ndarray) -> bool:
    """Whether the hand could take the subject there, and is not there itself."""
    eef = env.eef_position()
    if eef[2] < HAND_HIGH_M and np.hypot(*(eef[:2] - xy)) < HAND_ROOM_M:
        return False
    if subject not in CUBES:
        return True
    if xy[0] < HANDLE_CORNER_XY[0] and xy[1] > HANDLE_CORNER_XY[1]:
        return False
    others = np.array([env.position(name)[:2] for name in CUBES if name != subject])
    apart = np.abs(others - xy)
    return bool(((apart[:, 0] > CUBE_GAP_X_M) | (apart[:, 1] > CUBE_GAP_Y_M)).all())


def _put(env: TabletopEnv, subject: str, xy: np.ndarray) -> None:
    """Moves it there, as it lies, at rest."""
    scene, data = env.scene, env.data
    at = scene.qpos_of[subject]
    data.qpos[at : at + 2] = xy
    data.qvel[scene.qvel_of[subject] :][:6] = 0.0
    scene.mujoco.mj_kinematics(scene.model, data)
