"""Perturbations of where things are in LIBERO: the arm, the objects, and one of them once more."""

from __future__ import annotations

import numpy as np

from sim_bridge.libero.env import LiberoEnv
from sim_bridge.perturb.axis import Axis, Change
from sim_bridge.perturb.libero_table import Table
from sim_bridge.robot import BridgeError

JOINT_RAD = 0.10  # largest turn of each of the arm's joints
SHIFT_M = 0.06
SECOND_SHIFT_M = 0.06
MOVE_STEPS = (8, 16)


class StartPose(Axis):
    """Every joint of the arm starts turned by up to its largest."""

    def __init__(self, strength: float, env: LiberoEnv) -> None:
        super().__init__(strength)
        self._env = env

    def start(self, rng: np.random.Generator) -> list[Change]:
        """Draws the turns, moves the arm and tells its controller that it is to be there."""
        env, robot = self._env, self._env.robosuite.robots[0]
        joints = robot._ref_joint_pos_indexes
        turns = rng.uniform(0.5, 1.0, len(joints)) * rng.choice([-1.0, 1.0], len(joints))
        limits = env.model.jnt_range[robot._ref_joint_indexes]
        wanted = env.data.qpos[joints] + self.strength * JOINT_RAD * turns
        env.data.qpos[joints] = np.clip(wanted, limits[:, 0], limits[:, 1])
        env.data.qvel[robot._ref_joint_vel_indexes] = 0.0
        env.mujoco.mj_forward(env.model, env.data)
        robot.controller.update(force=True)
        robot.controller.reset_goal()
        env.show_moved(np.array(joints))
        return []


class Position(Axis):
    """Every object that stands on the table by itself is shifted."""

    def __init__(self, strength: float, env: LiberoEnv) -> None:
        super().__init__(strength)
        self._env = env

    def start(self, rng: np.random.Generator) -> list[Change]:
        """Draws the shifts. Raises BridgeError where nothing can be shifted."""
        table, moved = Table(self._env), 0
        for name in table.resting:
            way = table.find_way(name, rng, self.strength * SHIFT_M)
            if way is not None:
                table.shift(name, way)
                moved += 1
        if not moved:
            raise BridgeError(f"position: nothing to shift in this state of {self._env.task.slug}")
        return []


class Reposition(Axis):
    """Some steps into the episode one of the task's objects is shifted, once it stands by itself.

    That is the first that the task names; where that one stands on another thing or has no room,
    the next.
    """

    def __init__(self, strength: float, env: LiberoEnv) -> None:
        super().__init__(strength)
        self._env = env
        self._name = ""
        self._at_step = 0
        self._rng: np.random.Generator | None = None

    def start(self, rng: np.random.Generator) -> list[Change]:
        """Draws the step. Raises BridgeError where the task has nothing to shift."""
        env, table = self._env, Table(self._env)
        self._at_step, self._rng = int(rng.integers(*MOVE_STEPS)), rng
        for name in env.robosuite.obj_of_interest:
            if name in table.resting and table.find_way(name, rng, self._furthest_m) is not None:
                self._name = name
                return []
        raise BridgeError(f"reposition: nothing to shift in this state of {env.task.slug}")

    def before_step(self, step: int) -> None:
        """Shifts it by half to all of the largest way."""
        if self._rng is None or step < self._at_step:
            return
        table = Table(self._env)
        if self._name not in table.resting:
            return
        way = table.find_way(self._name, self._rng, self._furthest_m)
        if way is not None:
            table.shift(self._name, way)
            self._rng = None

    @property
    def _furthest_m(self) -> float:
        return self.strength * SECOND_SHIFT_M
