"""The tabletop environment: reset, step, observe; 20 Hz, LIBERO's 7-d action."""

from dataclasses import dataclass

import numpy as np

from sim_bridge.tabletop.goals import is_success
from sim_bridge.tabletop.init_states import init_state
from sim_bridge.tabletop.scene import CUBES, FREE_BODIES, Scene
from sim_bridge.tabletop.tasks import TaskSpec

CONTROL_RATE_HZ = 20
SUBSTEPS = 12  # of 1/240 s
SETTLE_SUBSTEPS = 60
TRANSLATION_M, ROTATION_RAD = 0.02, 0.1  # of a unit action
FINGER_OPEN_M = 0.045
# The servo target may lead the hand by this much, which bounds wind-up against an obstacle.
LEASH = np.array([0.03, 0.03, 0.03, 0.2, 0.2, 0.2])
TARGET_LOW = np.array([-0.195, -0.190, 0.012, -0.35, -0.35, -0.8])
TARGET_HIGH = np.array([0.195, 0.150, 0.200, 0.35, 0.35, 0.8])
UNIT = np.array([TRANSLATION_M] * 3 + [ROTATION_RAD] * 3)
OBJECT_STATE_SIZE = 14


@dataclass(frozen=True)
class Snapshot:
    """Everything that decides the future: physics incl. servo targets, step count, success."""

    physics: np.ndarray
    steps: int
    success: bool


class TabletopEnv:
    """One episode at a time of one task; owns its MjData, shares the scene.

    Action f32[7] in [-1, 1]: dx, dy, dz (unit 0.02 m), droll, dpitch, dyaw (unit 0.1 rad), world
    frame, gripper (> 0 closes, else opens).
    """

    def __init__(self, scene: Scene, task: TaskSpec) -> None:
        self.scene = scene
        self.task = task
        self.data = scene.mujoco.MjData(scene.model)
        self.steps = 0
        self.success = False  # has it succeeded in this episode?
        self.success_now = False  # does the predicate hold?

    def reset(self, split: str, init_state_index: int) -> None:
        """Put the scene into that initial state and let it settle."""
        scene, data, mujoco = self.scene, self.data, self.scene.mujoco
        start = init_state(self.task, split, init_state_index)
        mujoco.mj_resetData(scene.model, data)
        places = [*zip(CUBES, start.cube_xy, start.cube_yaw, [0.0201] * 3, strict=True)]
        places.append(("puck", start.puck_xy, 0.0, 0.0121))
        for name, xy, yaw, z in places:
            at = scene.qpos_of[name]
            data.qpos[at : at + 3] = (*xy, z)
            data.qpos[at + 3 : at + 7] = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        data.qpos[scene.drawer_qpos] = start.drawer_m
        finger_m = FINGER_OPEN_M if start.fingers_open else 0.0
        data.qpos[scene.hand_qpos] = start.hand_pose
        data.qpos[scene.finger_qpos] = finger_m
        data.ctrl[:6] = start.hand_pose
        data.ctrl[6:] = finger_m
        mujoco.mj_step(scene.model, data, SETTLE_SUBSTEPS)
        data.time = 0.0
        self._sync()
        self.steps = 0
        self.success = self.success_now = False

    def step(self, action_A: np.ndarray) -> bool:
        """Advance one control step; True once the task has succeeded in this episode.

        Raises ValueError unless the action is seven finite numbers; values are clipped to [-1, 1].
        """
        action_A = np.asarray(action_A, np.float64)
        if action_A.shape != (7,) or not np.isfinite(action_A).all():
            raise ValueError(f"action: expected 7 finite numbers, got {action_A!r}")
        scene, data = self.scene, self.data
        action_A = np.clip(action_A, -1.0, 1.0)
        pose = data.qpos[scene.hand_qpos]
        target = np.clip(data.ctrl[:6] + action_A[:6] * UNIT, pose - LEASH, pose + LEASH)
        data.ctrl[:6] = np.clip(target, TARGET_LOW, TARGET_HIGH)
        data.ctrl[6:] = 0.0 if action_A[6] > 0 else FINGER_OPEN_M
        scene.mujoco.mj_step(scene.model, data, SUBSTEPS)
        self._sync()
        self.steps += 1
        self.success_now = is_success(self)
        self.success = self.success or self.success_now
        return self.success

    def observe(self) -> dict[str, np.ndarray]:
        """Render: agentview u8[H, W, 3], wrist u8[H, W, 3], upright; proprio f32[8]."""
        self.scene.mujoco.mj_camlight(self.scene.model, self.data)
        return {
            "agentview": self.scene.render(self.data, "agentview"),
            "wrist": self.scene.render(self.data, "wrist"),
            "proprio": self.proprio(),
        }

    def proprio(self) -> np.ndarray:
        """f32[8]: eef position (m, world), axis-angle (rad, world), finger positions (m)."""
        scene = self.scene
        quat, axis_angle = np.empty(4), np.empty(3)
        scene.mujoco.mju_mat2Quat(quat, self.data.site_xmat[scene.eef_site])
        scene.mujoco.mju_quat2Vel(axis_angle, quat, 1.0)
        parts = (self.eef_position(), axis_angle, self.data.qpos[scene.finger_qpos])
        return np.concatenate(parts).astype(np.float32)

    def object_state(self) -> np.ndarray:
        """Privileged f32[14]: xyz of red, green, blue, puck (m, world), drawer and button (m)."""
        joints = [self.drawer_m, self.button_m]
        places = [self.position(name) for name in FREE_BODIES]
        return np.concatenate([*places, joints]).astype(np.float32)

    def snapshot(self) -> Snapshot:
        """Copy the full state; cheap, taken between control steps."""
        mujoco = self.scene.mujoco
        physics = np.empty(self.scene.state_size)
        mujoco.mj_getState(
            self.scene.model, self.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION
        )
        return Snapshot(physics, self.steps, self.success)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to `snapshot`: the same actions then give bitwise the same states."""
        mujoco = self.scene.mujoco
        mujoco.mj_setState(
            self.scene.model, self.data, snapshot.physics, mujoco.mjtState.mjSTATE_INTEGRATION
        )
        self._sync()
        self.steps = snapshot.steps
        self.success, self.success_now = snapshot.success, is_success(self)

    def position(self, name: str) -> np.ndarray:
        """Centre of a cube or the puck, f64[3], m, world."""
        at = self.scene.qpos_of[name]
        return self.data.qpos[at : at + 3].copy()

    def yaw(self, name: str) -> float:
        """Turn of a cube lying flat from its nearest aligned pose, rad in [-pi/4, pi/4]."""
        w, x, y, z = self.data.qpos[self.scene.qpos_of[name] + 3 :][:4]
        yaw = np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))
        return float((yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4)

    def speed_mps(self, name: str) -> float:
        """Linear speed of a cube or the puck."""
        at = self.scene.qvel_of[name]
        return float(np.linalg.norm(self.data.qvel[at : at + 3]))

    def eef_position(self) -> np.ndarray:
        """Grasp point between the finger tips, f64[3], m, world."""
        return self.data.site_xpos[self.scene.eef_site].copy()

    def eef_rotation(self) -> np.ndarray:
        """Rotation hand to world, f64[3, 3]."""
        return self.data.site_xmat[self.scene.eef_site].reshape(3, 3).copy()

    @property
    def finger_gap_m(self) -> float:
        return float(self.data.qpos[self.scene.finger_qpos].sum())

    @property
    def drawer_m(self) -> float:
        return float(self.data.qpos[self.scene.drawer_qpos])

    @property
    def button_m(self) -> float:
        return float(self.data.qpos[self.scene.button_qpos])

    def _sync(self) -> None:
        """Bring body poses up to qpos: mj_step leaves those of the substep before."""
        self.scene.mujoco.mj_kinematics(self.scene.model, self.data)
