"""Reads LIBERO's published demonstrations: one HDF5 file a task, `data/demo_0`, `data/demo_1`, ….

A demonstration of T steps has `actions` f64[T, 7]; `states` f64[T, S], the simulator's before each
action (time, joint positions, joint velocities; the arm's seven joints come first); and in `obs`
`agentview_rgb`, `eye_in_hand_rgb` u8[T, H, W, 3] as OpenGL gives them, `ee_states` f64[T, 6]
(position, m; axis-angle, rad), `gripper_states` f64[T, 2] (m), `joint_states` f64[T, 7] (rad).

In the files that LIBERO published, row t of `obs` is what was seen *after* action t; in files made
anew from them (as OpenVLA's preparation does) it is what was seen *before*. Nothing in a file says
which, but its joints do: they are compared with those in `states`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import h5py
import numpy as np

from learner.demonstrations import DemonstrationError

ACTION_DIM = 7
ARM_JOINTS = slice(1, 8)  # of a state; its first number is the time
CAMERAS = {"agentview": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
NOOP_LIMIT = 1e-4
_SCENE = re.compile(r"^[A-Z_]+SCENE\d+_")  # where a task of libero_90 and libero_10 takes place


@dataclass(frozen=True, slots=True)
class Demonstration:
    """T steps: what was seen before each action, and the action.

    images: camera -> u8[T, H, W, 3], turned by 180 degrees as OpenVLA's data is. proprio_TP:
    f32[T, 8]. actions_TA: f32[T, 7] in [-1, 1], gripper -1 open, +1 close.
    """

    images: dict[str, np.ndarray]
    proprio_TP: np.ndarray
    actions_TA: np.ndarray

    def __len__(self) -> int:
        return len(self.actions_TA)

    def steps(self, kept: np.ndarray) -> Demonstration:
        """Of these steps only (a mask or indices)."""
        images = {camera: image[kept] for camera, image in self.images.items()}
        return Demonstration(images, self.proprio_TP[kept], self.actions_TA[kept])


@dataclass(frozen=True, slots=True)
class DemonstrationFile:
    """One file that is open. slug: the distribution's name of the task, in lower case."""

    path: Path
    slug: str
    instruction: str
    names: tuple[str, ...]  # of its demonstrations, in their order
    data: h5py.Group

    def read(self, name: str) -> Demonstration:
        """Raises DemonstrationError unless it has the arrays, shapes and finite values above."""
        place = f"{self.path}: data/{name}"
        group = self.data[name]
        actions_TA = _numbers(group, "actions", ACTION_DIM, place)
        steps = len(actions_TA)
        states_TS = _numbers(group, "states", None, place, steps)
        obs = group.get("obs")
        if not isinstance(obs, h5py.Group):
            raise DemonstrationError(f"{place} has no observations (group obs)")
        hand_TP = _numbers(obs, "ee_states", 6, place, steps)
        fingers_TP = _numbers(obs, "gripper_states", 2, place, steps)
        joints_TJ = _numbers(obs, "joint_states", 7, place, steps)
        found = Demonstration(
            {camera: _pictures(obs, name, place, steps) for camera, name in CAMERAS.items()},
            np.concatenate([hand_TP, fingers_TP], axis=1).astype(np.float32),
            np.clip(actions_TA, -1.0, 1.0).astype(np.float32),
        )
        return _seen_before(found) if _is_seen_after(joints_TJ, states_TS) else found


@contextmanager
def open_file(path: Path) -> Iterator[DemonstrationFile]:
    """Raises DemonstrationError for a file of another kind."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DemonstrationError(f"{path}: {error}; expected a LIBERO HDF5 file") from error
    with file:
        data = file.get("data")
        if not isinstance(data, h5py.Group):
            raise DemonstrationError(f"{path} has no group 'data': not a LIBERO demonstration file")
        convention = data.attrs.get("macros_image_convention", "opengl")
        if convention != "opengl":
            raise DemonstrationError(
                f"{path}: pictures by the convention '{convention}', expected 'opengl'"
            )
        names = [name for name in data if re.fullmatch(r"demo_\d+", name)]
        task = PurePosixPath(data.attrs.get("bddl_file_name", path.stem.removesuffix("_demo"))).stem
        yield DemonstrationFile(
            path,
            task.lower(),
            # What published policies were told; the language in the BDDL file is often another.
            _SCENE.sub("", task).replace("_", " "),
            tuple(sorted(names, key=lambda name: int(name[len("demo_") :]))),
            data,
        )


def noop_mask(actions_TA: np.ndarray) -> np.ndarray:
    """Which actions tell the robot nothing, bool[T]: no motion, and the gripper's last command.

    As OpenVLA's data preparation finds them; the last command is that of the last other action.
    """
    still_T = np.linalg.norm(actions_TA[:, :-1], axis=1) < NOOP_LIMIT
    mask_T = np.zeros(len(actions_TA), bool)
    command: float | None = None
    for t, action_A in enumerate(actions_TA):
        mask_T[t] = still_T[t] and command in (None, action_A[-1])
        command = command if mask_T[t] else action_A[-1]
    return mask_T


def _is_seen_after(joints_TJ: np.ndarray, states_TS: np.ndarray) -> bool:
    """Whether row t of the observations shows the state that action t led to."""
    arm_TJ = states_TS[:, ARM_JOINTS]
    before = np.abs(joints_TJ[:-1] - arm_TJ[:-1]).mean()
    after = np.abs(joints_TJ[:-1] - arm_TJ[1:]).mean()
    return bool(after < before)


def _seen_before(shifted: Demonstration) -> Demonstration:
    """Each observation with the action that followed it; the last one had none."""
    images = {camera: image[:-1] for camera, image in shifted.images.items()}
    return Demonstration(images, shifted.proprio_TP[:-1], shifted.actions_TA[1:])


def _numbers(
    group: h5py.Group, name: str, width: int | None, place: str, steps: int | None = None
) -> np.ndarray:
    values = _array(group, name, place)
    rows = steps if steps is not None else len(values)
    if values.ndim != 2 or values.shape != (rows, width or values.shape[1]) or rows < 2:
        raise DemonstrationError(
            f"{place}: {name} has shape {values.shape}, expected ({rows}, {width or 'any'})"
        )
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        raise DemonstrationError(f"{place}: {name} ({values.dtype}) are not finite numbers")
    return values


def _pictures(obs: h5py.Group, name: str, place: str, steps: int) -> np.ndarray:
    images = _array(obs, name, place)
    if images.dtype != np.uint8 or images.ndim != 4 or (len(images), images.shape[3]) != (steps, 3):
        raise DemonstrationError(
            f"{place}: {name} is {images.dtype} {images.shape}, expected uint8 ({steps}, H, W, 3)"
        )
    return images[:, ::-1, ::-1]


def _array(group: h5py.Group, name: str, place: str) -> np.ndarray:
    found = group.get(name)
    if not isinstance(found, h5py.Dataset) or found.ndim == 0:
        raise DemonstrationError(f"{place}: {name} is missing")
    return found[()]
