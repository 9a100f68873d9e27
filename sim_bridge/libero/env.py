"""One LIBERO environment: the distribution's own, stepped without the work nobody looks at.

The physics is untouched, to the last bit: `step` makes the calls of robosuite's `step` that change
the state and leaves out the others: observables at every substep, and two of its three forward
passes. Nothing is rendered here.

What may be seen is what the distribution shows, 4 ms late: robosuite takes its measurements in the
last but one of a step's 25 substeps, from poses computed before that substep moves anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from sim_bridge.libero.resets import PublishedResets, quiet
from sim_bridge.libero.tasks import LiberoTask
from sim_bridge.robot import BridgeError

ACTION_DIM = 7
PROPRIO_DIM = 8
CONTROL_RATE_HZ = 20
MEASURED_SUBSTEP = 2  # from a step's end


def import_simulator() -> None:
    """Imports what environments are made of; takes seconds. Raises ImportError for what lacks."""
    with quiet():
        import libero.libero.envs.env_wrapper  # noqa: F401


class LiberoEnv:
    """One task; one episode at a time.

    Action f32[7] in [-1, 1]: dx, dy, dz (unit 0.05 m), rotation vector (unit 0.5 rad), world frame,
    gripper (> 0 closes, else opens).
    """

    def __init__(self, task: LiberoTask) -> None:
        """Takes 4 to 10 s, and about 1.5 GB."""
        with quiet():
            from libero.libero.envs.env_wrapper import ControlEnv

            self._control = ControlEnv(
                bddl_file_name=str(task.bddl_path),
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                hard_reset=False,  # or the model is compiled anew at every reset
                ignore_done=True,
            )
        import mujoco
        import robosuite.utils.transform_utils as transforms

        self.task = task
        self.mujoco = mujoco
        self.robosuite = self._control.env
        self.success = False  # has the task succeeded in this episode?
        self.success_now = False  # does its predicate hold?
        self._transforms = transforms
        self._init_states_NS = task.init_states()
        self._resets = PublishedResets(self._control)
        self._substeps = round(self.robosuite.control_timestep / self.robosuite.model_timestep)
        self._seen = mujoco.MjData(self.model)  # its poses lag behind until someone looks
        self._seen_fingers_m = np.zeros(2)

    @property
    def model(self):
        """The compiled model, mujoco.MjModel."""
        return self.robosuite.sim.model._model

    @property
    def data(self):
        """Its state, mujoco.MjData."""
        return self.robosuite.sim.data._data

    @property
    def init_state_count(self) -> int:
        """How many init states are published for this task."""
        return len(self._init_states_NS)

    def reset_published(self, init_state: int, reseeded: bool = False) -> None:
        """Puts the scene into the published init state `init_state`, with its episode's fixtures.

        reseeded: whether the published loop seeds before every reset, and not once.

        Raises BridgeError for an index that is not published.
        """
        if not 0 <= init_state < self.init_state_count:
            raise BridgeError(
                f"init_state: {self.task.slug} has 0 to {self.init_state_count - 1}, "
                f"got {init_state}"
            )
        if reseeded:
            self._resets.reset_seeded(init_state)
        else:
            self._resets.reset(init_state)
        self._begin()
        self._control.set_init_state(self._init_states_NS[init_state])
        self._measure()

    def reset_fresh(self, seed: int) -> None:
        """Puts the scene into a new start state, drawn as the published ones were."""
        # What lies in a drawer is placed where the drawer was: it has to be there already.
        for _ in range(2):
            self._resets.reset_seeded(0, seed)
        self._begin()

    def step(self, action_A: np.ndarray) -> bool:
        """One control step of 1/20 s; True once the task has succeeded in this episode.

        Raises ValueError unless the action is seven finite numbers.
        """
        action_A = np.asarray(action_A, np.float64)
        if action_A.shape != (ACTION_DIM,) or not np.isfinite(action_A).all():
            raise ValueError(f"action: expected 7 finite numbers, got {action_A!r}")
        self.settle(action_A)
        self.success_now = bool(self.robosuite._check_success())
        self.success = self.success or self.success_now
        return self.success

    def settle(self, action_A: np.ndarray) -> None:
        """One control step that does not count: no success is looked for."""
        env, model, data = self.robosuite, self.model, self.data
        with self._short_forward():
            for substep in range(self._substeps):
                if substep == self._substeps - MEASURED_SUBSTEP:
                    self._seen.qpos[:] = data.qpos
                self.mujoco.mj_step1(model, data)
                env.sim.forward()
                env._pre_action(action_A, policy_step=substep == 0)
                self.mujoco.mj_step2(model, data)
                if substep == self._substeps - MEASURED_SUBSTEP:
                    self._seen_fingers_m = self._fingers_m()
        env._post_process()

    def look(self):
        """The state as it may be seen, mujoco.MjData with poses, cameras and lights."""
        mujoco, model = self.mujoco, self.model
        mujoco.mj_kinematics(model, self._seen)
        mujoco.mj_comPos(model, self._seen)
        mujoco.mj_camlight(model, self._seen)
        return self._seen

    def proprio(self) -> np.ndarray:
        """f32[8] as it may be seen, after `look`: eef position (m, world), its axis-angle (rad,
        world), finger positions (m).
        """
        robot, seen, transforms = self.robosuite.robots[0], self._seen, self._transforms
        quat = seen.xquat[self.model.body(robot.robot_model.eef_name).id]
        parts = (
            seen.site_xpos[robot.eef_site_id],
            transforms.quat2axisangle(transforms.convert_quat(quat, to="xyzw")),
            self._seen_fingers_m,
        )
        return np.concatenate(parts).astype(np.float32)

    def eef_position(self) -> np.ndarray:
        """Grasp point between the finger tips, f64[3], m, world."""
        return self.data.site_xpos[self.robosuite.robots[0].eef_site_id].copy()

    def eef_rotation(self) -> np.ndarray:
        """Rotation hand to world, f64[3, 3]."""
        return self.data.site_xmat[self.robosuite.robots[0].eef_site_id].reshape(3, 3).copy()

    def position(self, name: str) -> np.ndarray:
        """Of an object's or fixture's body, f64[3], m, world."""
        return self.data.xpos[self.robosuite.obj_body_id[name]].copy()

    def rotation(self, name: str) -> np.ndarray:
        """Rotation of an object's or fixture's body to world, f64[3, 3]."""
        return self.data.xmat[self.robosuite.obj_body_id[name]].reshape(3, 3).copy()

    def close(self) -> None:
        """Releases the model and its renderer."""
        self._control.close()

    def _begin(self) -> None:
        # The one thing of an episode that a soft reset leaves: the gripper's last command.
        gripper = self.robosuite.robots[0].gripper
        gripper.current_action = np.zeros_like(gripper.current_action)
        self.success = self.success_now = False
        self._measure()

    def show_moved(self, indices: np.ndarray | slice) -> None:
        """Shows these coordinates of the state as they are now; for what was moved by hand."""
        self._seen.qpos[indices] = self.data.qpos[indices]

    def _measure(self) -> None:
        """Makes the present state the one that may be seen."""
        self._seen.qpos[:] = self.data.qpos
        self._seen_fingers_m = self._fingers_m()

    def _fingers_m(self) -> np.ndarray:
        return self.data.qpos[self.robosuite.robots[0]._ref_gripper_joint_pos_indexes]

    @contextmanager
    def _short_forward(self) -> Iterator[None]:
        """Have a forward pass repeat only what its repetition changes.

        robosuite and the controller ask for passes of a state whose positions and velocities
        `mj_step1` just computed. What is left, the accelerations, is not idle: each solution for
        the contacts' forces is where the next one starts from.
        """
        sim, mujoco, model, data = self.robosuite.sim, self.mujoco, self.model, self.data
        sim.forward = lambda: mujoco.mj_forwardSkip(model, data, mujoco.mjtStage.mjSTAGE_VEL, 1)
        try:
            yield
        finally:
            del sim.forward
