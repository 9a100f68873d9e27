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

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.model.images import MAX_SIDE
from agent.process.archives import describe_bad_archive
from agent.process.instruction import clean_instruction
from agent.process.optional import needing
from agent.process.shown import shown
from agent.process.stand_ins import describe_stand_in
from learner.demonstrations import DemonstrationError

with needing("demos"):
    import h5py

ACTION_DIM = 7
ARM_JOINTS = slice(1, 8)  # of a state; its first number is the time
CAMERAS = {"agentview": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
NOOP_LIMIT = 1e-4
STEPS_MAX = 100_000
ARRAY_BYTES_MAX = 8 << 30
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_CUT = re.compile(r"truncated file: eof = (\d+),.* stored_eof = (\d+)")  # as HDF5 says it
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
        """Read one demonstration; nothing of it that is too large, or of another kind, is read.

        Raises:
            DemonstrationError: it lacks arrays, or they are damaged or not as described above; the
                message names file and demonstration.
        """
        place = f"{self.path}: data/{name}"
        with _reading(place):
            return self._read(name, place)

    def _read(self, name: str, place: str) -> Demonstration:
        group = _group(self.data, name, place)
        actions_TA = _numbers(group, "actions", ACTION_DIM, place)
        steps = len(actions_TA)
        states_TS = _numbers(group, "states", None, place, steps)
        obs = _group(group, "obs", place)
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
    """Open a file of demonstrations; none of them is read.

    Raises:
        DemonstrationError: the file cannot be opened, or is of another kind.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            what = "a folder" if path.is_dir() else "no file"
            raise DemonstrationError(f"{path} is {what}; expected a LIBERO HDF5 file")
        file = h5py.File(path, "r")
    except OSError as error:
        what = describe_stand_in(path) or _why_closed(path, error)
        raise DemonstrationError(f"{path} {what}; expected a LIBERO HDF5 file") from error
    with file:
        with _reading(str(path)):
            found = _look_into(path, file)
        yield found


def _why_closed(path: Path, error: OSError) -> str:
    """Why a file could not be opened, in words that follow its name; HDF5's are its own."""
    if error.errno == errno.EAGAIN:
        return "is open in a program that writes it: end that, or copy the file"
    if error.errno is not None:
        return f"cannot be opened ({os.strerror(error.errno)})"
    try:
        if path.stat().st_size == 0:
            return "is empty"
        if not h5py.is_hdf5(path):
            return "is no HDF5 file"
    except OSError:
        pass  # that it could not be opened is enough
    if cut := _CUT.search(str(error)):
        return f"is cut off, {int(cut[1]):,} of {int(cut[2]):,} bytes are there: fetch it again"
    return "is damaged: fetch it again"


def _look_into(path: Path, file: h5py.File) -> DemonstrationFile:
    data = file.get("data")
    if not isinstance(data, h5py.Group):
        raise DemonstrationError(
            f"{path} has no group 'data' that can be read: not a LIBERO demonstration file, or "
            "damaged"
        )
    convention = _text(data, "macros_image_convention", "opengl", path)
    if convention != "opengl":
        raise DemonstrationError(
            f"{path}: pictures by the convention {shown(convention)}, expected 'opengl'"
        )
    named = _text(data, "bddl_file_name", path.stem.removesuffix("_demo"), path)
    task = re.split(r"[/\\]", named)[-1].removesuffix(".bddl")
    if not _TASK.fullmatch(task):
        raise DemonstrationError(
            f"{path}: a task named {shown(task)}; expected letters, digits, '_' and '-', as in "
            "'turn_on_the_stove_demo.hdf5'"
        )
    try:
        # What published policies were told; the language in the BDDL file is often another.
        instruction = clean_instruction(_SCENE.sub("", task).replace("_", " "))
    except ValueError as error:
        raise DemonstrationError(f"{path}: {error}") from error
    names = [name for name in data if re.fullmatch(r"demo_[0-9]{1,9}", name)]
    names.sort(key=lambda name: int(name[len("demo_") :]))
    return DemonstrationFile(path, task.lower(), instruction, tuple(names), data)


@contextmanager
def _reading(place: str) -> Iterator[None]:
    """Have damage that HDF5 meets inside say where: its own words name neither file nor place."""
    try:
        yield
    except DemonstrationError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError) as error:
        why = describe_bad_archive(error, "is damaged: fetch the file again")
        raise DemonstrationError(f"{place} {why}") from error


def _text(data: h5py.Group, name: str, default: str, path: Path) -> str:
    """An attribute as text, however the program that wrote it stores text."""
    value = data.attrs.get(name, default)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise DemonstrationError(
            f"{path}: attribute {name}: expected text, got {type(value).__name__}"
        )
    return value


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
    stored = _dataset(group, name, place)
    rows = steps if steps is not None else stored.shape[0]
    wanted = (rows, width or stored.shape[-1])
    if stored.ndim != 2 or stored.shape != wanted or not 2 <= rows <= STEPS_MAX:
        raise DemonstrationError(
            f"{place}: {name} has shape {stored.shape}, expected ({rows}, {width or 'any'}) and 2 "
            f"to {STEPS_MAX} steps"
        )
    values = _content(stored, f"{place}: {name}") if stored.dtype.kind == "f" else None
    # Kept as float32, in which larger ones would be infinite.
    if values is None or not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise DemonstrationError(
            f"{place}: {name} ({stored.dtype}) are not finite numbers that float32 can hold"
        )
    return values


def _pictures(obs: h5py.Group, name: str, place: str, steps: int) -> np.ndarray:
    stored = _dataset(obs, name, place)
    fits = stored.dtype == np.uint8 and stored.ndim == 4 and stored.shape[::3] == (steps, 3)
    if not fits or not 1 <= min(stored.shape[1:3]) <= max(stored.shape[1:3]) <= MAX_SIDE:
        raise DemonstrationError(
            f"{place}: {name} is {stored.dtype} {stored.shape}, expected uint8 ({steps}, H, W, 3) "
            f"with sides up to {MAX_SIDE}"
        )
    return _content(stored, f"{place}: {name}")[:, ::-1, ::-1]


def _group(parent: h5py.Group, name: str, place: str) -> h5py.Group:
    found = parent.get(name)
    if not isinstance(found, h5py.Group):
        raise DemonstrationError(f"{place} has no group {name} that can be read")
    return found


def _dataset(group: h5py.Group, name: str, place: str) -> h5py.Dataset:
    """An array that is there and not yet read: a few bytes can claim any size."""
    found = group.get(name)
    if not isinstance(found, h5py.Dataset) or found.ndim == 0:
        raise DemonstrationError(f"{place}: {name} is missing or damaged")
    if found.nbytes > ARRAY_BYTES_MAX:
        raise DemonstrationError(
            f"{place}: {name} has shape {found.shape}, more than {ARRAY_BYTES_MAX >> 30} GiB"
        )
    return found


def _content(stored: h5py.Dataset, place: str) -> np.ndarray:
    """The array, read."""
    with _reading(place):
        try:
            values: np.ndarray = stored[()]
        except OSError as error:
            if unknown := _unknown_filters(stored):
                raise DemonstrationError(
                    f"{place} is packed with HDF5 filter {unknown[0]}, which is not there: have "
                    "h5repack write the file with gzip"
                ) from error
            raise
    return values


def _unknown_filters(stored: h5py.Dataset) -> list[int]:
    """The numbers of the filters that its values went through and that nobody here knows."""
    made = stored.id.get_create_plist()
    filters = [made.get_filter(index)[0] for index in range(made.get_nfilters())]
    return [number for number in filters if not h5py.h5z.filter_avail(number)]
