"""Initial states as a pure function of (task, split, index)."""

from dataclasses import dataclass

import numpy as np

from sim_bridge.tabletop.tasks import TaskSpec

SUITE_SEED = 20_240
SPLITS = ("train", "eval", "demo")
INIT_STATES_PER_TASK = 50  # of "train" and of "eval"; "demo" is unbounded

CUBE_LOW_XY, CUBE_HIGH_XY = (-0.065, -0.050), (0.140, 0.042)
# Two cubes lie at least this far apart along x or along y: an open finger fits between them.
CUBE_GAP_X_M, CUBE_GAP_Y_M = 0.095, 0.058
# Cubes keep out of x below and y above this corner: the open fingers around the handle.
HANDLE_CORNER_XY = (-0.045, -0.005)
PUCK_XY = (0.0, -0.115)
WIDE_START_SHARE = 0.4


@dataclass(frozen=True)
class InitState:
    """Poses before settling: metres and radians, world frame."""

    cube_xy: np.ndarray  # [3, 2], order red, green, blue
    cube_yaw: np.ndarray  # [3]
    puck_xy: np.ndarray  # [2]
    drawer_m: float
    hand_pose: np.ndarray  # [6], x, y, z, roll, pitch, yaw
    fingers_open: bool


def init_state(task: TaskSpec, split: str, index: int) -> InitState:
    """Draw the initial state number `index` of `split` for `task`, always the same one.

    "train" and "eval" hold 50 each, from independent streams. "demo" is any index >= 0 and also
    starts from hand poses all over the workspace, for demonstrations only.

    Raises ValueError for an unknown split or an index out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    last = INIT_STATES_PER_TASK - 1 if split != "demo" else 2**31 - 1
    if not 0 <= index <= last:
        raise ValueError(f"init_state: expected 0 to {last} for split {split!r}, got {index}")
    seed = np.random.SeedSequence(SUITE_SEED, spawn_key=(task.id, SPLITS.index(split), index))
    rng = np.random.Generator(np.random.Philox(seed))
    wide = split == "demo" and rng.random() < WIDE_START_SHARE
    return InitState(
        cube_xy=_cube_places(rng),
        cube_yaw=rng.uniform(-0.2, 0.2, 3),
        puck_xy=np.add(PUCK_XY, rng.uniform((-0.030, -0.010), (0.030, 0.010))),
        drawer_m=_drawer_opening_m(task, rng),
        hand_pose=_hand_pose(rng, wide),
        fingers_open=not wide or rng.random() < 0.6,
    )


def _cube_places(rng: np.random.Generator) -> np.ndarray:
    """Three centres [3, 2], redrawn until an open finger fits between any two cubes."""
    while True:
        xy = rng.uniform(CUBE_LOW_XY, CUBE_HIGH_XY, (3, 2))
        apart = np.abs(xy[[0, 0, 1]] - xy[[1, 2, 2]])
        at_handle = (xy[:, 0] < HANDLE_CORNER_XY[0]) & (xy[:, 1] > HANDLE_CORNER_XY[1])
        if at_handle.any():
            continue
        if np.all((apart[:, 0] > CUBE_GAP_X_M) | (apart[:, 1] > CUBE_GAP_Y_M)):
            return xy


def _drawer_opening_m(task: TaskSpec, rng: np.random.Generator) -> float:
    if task.slug == "drawer_close":
        return float(rng.uniform(0.035, 0.053))
    return float(rng.uniform(0.0, 0.012))


def _hand_pose(rng: np.random.Generator, wide: bool) -> np.ndarray:
    if wide:
        low, high = (-0.16, -0.14, 0.075), (0.16, 0.12, 0.16)
        tilt = (0.15, 0.15, 0.3)
    else:
        low, high = (-0.03, -0.03, 0.115), (0.03, 0.03, 0.145)
        tilt = (0.04, 0.04, 0.1)
    return np.concatenate([rng.uniform(low, high), rng.uniform(np.negative(tilt), tilt)])
