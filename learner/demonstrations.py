"""Demonstration shards (.npz) as arrays, and the statistics a policy is normalised with.

A shard holds, for N frames: agentview, wrist u8[N, H, W, 3]; proprio f32[N, P]; task i16[N];
actions f32[N, K, A] (the expert's next K actions from that frame, environment convention);
state f32[N, S] and target f32[N, 6] (privileged, for auxiliary losses only; [N, 0] where the
demonstrator's simulator is not at hand); episode i32[N].
`meta.json` beside the shards names the tasks and their instructions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.process.archives import BAD_ARCHIVE, describe_bad_archive
from agent.process.instruction import clean_instruction
from agent.process.json_files import DamagedFile, read_json
from agent.process.stand_ins import describe_stand_in
from agent.wire.errors import PerennialError

META_FILE = "meta.json"
FRAME_ARRAYS = {
    "agentview": ("u", 4),
    "wrist": ("u", 4),
    "proprio": ("f", 2),
    "task": ("iu", 1),
    "actions": ("f", 3),
    "state": ("f", 2),
    "target": ("f", 2),
}
"""What a shard holds: numpy's kinds of number, and the axes."""
_META = {"tasks": [{"slug": str, "instruction": str}]}


class DemonstrationError(PerennialError):
    """A shard folder that cannot be trained on; the message says what is wrong with it."""


@dataclass(frozen=True)
class Demonstrations:
    """All frames of one or more shard folders, in file order."""

    agentview: np.ndarray  # u8[N, H, W, 3]
    wrist: np.ndarray  # u8[N, H, W, 3]
    proprio: np.ndarray  # f32[N, P]
    task: np.ndarray  # i16[N], index into `slugs`
    actions: np.ndarray  # f32[N, K, A]
    state: np.ndarray  # f32[N, S]
    target: np.ndarray  # f32[N, 6], or as `state` [N, 0]: not known
    slugs: tuple[str, ...]
    instructions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.task)


def load_demonstrations(folders: list[Path], tasks: Sequence[str] | None = None) -> Demonstrations:
    """Read every shard of `folders`, optionally the frames of some tasks only.

    Raises DemonstrationError when a folder has no shard, its tasks differ from the others', or
    an array is missing, mis-shaped or not finite.
    """
    known = read_tasks(folders, tasks or ())
    slugs = [entry["slug"] for entry in known]
    wanted = None if tasks is None else [slugs.index(task) for task in tasks]

    def kept(path: Path) -> dict[str, np.ndarray]:
        shard = _read_shard(path)
        _check_tasks(path, shard["task"], slugs)
        keep = slice(None) if wanted is None else np.isin(shard["task"], wanted)
        return {name: array[keep] for name, array in shard.items()}

    return _join(map(kept, _shard_paths(folders)), known, folders)


def load_episodes(
    folders: list[Path], task: str, count: int, rng: np.random.Generator
) -> Demonstrations:
    """The frames of `count` demonstrations of a task (of all if there are fewer), drawn by `rng`.

    An episode demonstrates the task that most of its frames are labelled for: shards may hold
    frames that were labelled once more, for another task.

    Raises DemonstrationError as `load_demonstrations`, and without a demonstration of the task.
    """
    known = read_tasks(folders, [task])
    number = [entry["slug"] for entry in known].index(task)
    paths = _shard_paths(folders)
    places = [(path, episode) for path in paths for episode in _episodes_of(path, number)]
    if not places:
        raise DemonstrationError(f"no demonstration of {task!r} in {[str(f) for f in folders]}")
    drawn = rng.choice(len(places), size=min(count, len(places)), replace=False)
    chosen: dict[Path, list[int]] = {}
    for index in sorted(drawn):
        path, episode = places[index]
        chosen.setdefault(path, []).append(episode)

    def kept(path: Path) -> dict[str, np.ndarray]:
        shard, (_, episodes) = _read_shard(path), _labels(path)
        keep = (shard["task"] == number) & np.isin(episodes, chosen[path])
        return {name: array[keep] for name, array in shard.items()}

    return _join(map(kept, chosen), known, folders)


def read_tasks(folders: list[Path], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """The entries (slug, instruction) of the tasks of all folders.

    Raises DemonstrationError when they differ or one of `tasks` is not among them.
    """
    lists = [_read_task_list(folder) for folder in folders]
    if any(entries != lists[0] for entries in lists):
        raise DemonstrationError(f"the task lists of {[str(f) for f in folders]} differ")
    slugs = [entry["slug"] for entry in lists[0]]
    if unknown := [task for task in tasks if task not in slugs]:
        raise DemonstrationError(
            f"no task {unknown[0]!r} in {folders[0]}; it has {', '.join(slugs)}"
        )
    return lists[0]


def normalisation_statistics(demos: Demonstrations, dataset: str) -> dict[str, dict]:
    """`dataset_statistics.json` content (published layout) for the unnorm key `dataset`.

    The gripper is stored as the published data sets store it: 0 closed, 1 open, not normalised
    (mask False); the environment's sign convention is -1 open, +1 close.
    """
    actions = demos.actions[:, 0].astype(np.float64)
    actions[:, -1] = (1 - np.sign(actions[:, -1])) / 2
    mask = [True] * (actions.shape[1] - 1) + [False]
    return {
        dataset: {
            "action": {**_moments(actions), "mask": mask},
            "proprio": _moments(demos.proprio.astype(np.float64)),
            "num_transitions": len(demos),
            "num_trajectories": 0,
        }
    }


def _moments(values: np.ndarray) -> dict[str, list[float]]:
    return {
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "q01": np.quantile(values, 0.01, axis=0).tolist(),
        "q99": np.quantile(values, 0.99, axis=0).tolist(),
    }


def _join(
    shards: Iterable[dict[str, np.ndarray]], known: list[dict[str, Any]], folders: list[Path]
) -> Demonstrations:
    columns: dict[str, list[np.ndarray]] = {name: [] for name in FRAME_ARRAYS}
    for shard in shards:
        for name in FRAME_ARRAYS:
            columns[name].append(shard[name])
    if not sum(map(len, columns["task"])):
        raise DemonstrationError(f"no frames in {[str(f) for f in folders]}")
    for name in FRAME_ARRAYS:
        shapes = {part.shape[1:] for part in columns[name]}
        if len(shapes) > 1:
            raise DemonstrationError(f"{name} differs between shards: {sorted(shapes)} a frame")
    return Demonstrations(
        **{name: np.concatenate(parts) for name, parts in columns.items()},
        slugs=tuple(entry["slug"] for entry in known),
        instructions=tuple(entry["instruction"] for entry in known),
    )


def _shard_paths(folders: list[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.glob("*.npz"))]


def _episodes_of(path: Path, task: int) -> list[int]:
    """The episodes of a shard most of whose frames are labelled for the task, in their order."""
    tasks, episodes = _labels(path)
    numbers = np.unique(episodes)
    return [int(n) for n in numbers if np.bincount(tasks[episodes == n]).argmax() == task]


def _check_tasks(path: Path, tasks: np.ndarray, slugs: list[str]) -> None:
    if len(tasks) and not 0 <= tasks.min() <= tasks.max() < len(slugs):
        raise DemonstrationError(
            f"{path}: frames of tasks {tasks.min()} to {tasks.max()}, the folder's {META_FILE} "
            f"lists {len(slugs)}: shards and list belong to different sets"
        )


def _labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Task and episode of each frame of a shard."""
    arrays = read_arrays(path, ("task", "episode"))
    return arrays["task"], arrays["episode"]


def _read_task_list(folder: Path) -> list[dict[str, Any]]:
    path = folder / META_FILE
    if not os.path.lexists(path):
        raise DemonstrationError(f"{path} is missing: is {folder} a demonstration folder?")
    try:
        tasks = read_json(path, _META, "make the folder anew")["tasks"]
        return [
            {"slug": task["slug"], "instruction": clean_instruction(task["instruction"])}
            for task in tasks
        ]
    except DamagedFile as error:
        raise DemonstrationError(str(error)) from error
    except ValueError as error:
        raise DemonstrationError(f"{path} is damaged: {error}; make the folder anew") from error


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Arrays of one shard.

    Raises:
        DemonstrationError: the file is damaged or none, or lacks one of them.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := [name for name in names if name not in archive.files]:
                raise DemonstrationError(
                    f"{path}: arrays {missing} are missing; it has {archive.files}"
                )
            return {name: archive[name] for name in names}
    except BAD_ARCHIVE as error:
        what = describe_stand_in(path) or (
            f"{describe_bad_archive(error)}: make it anew, or take it out of the folder"
        )
        raise DemonstrationError(f"{path} {what}") from error


def _read_shard(path: Path) -> dict[str, np.ndarray]:
    shard = read_arrays(path, FRAME_ARRAYS)
    frames = shard["task"].size
    for name, array in shard.items():
        kind, axes = FRAME_ARRAYS[name]
        if array.dtype.kind not in kind or array.ndim != axes:
            raise DemonstrationError(
                f"{path}: {name} is {array.dtype} with {array.ndim} axes, expected kind {kind} "
                f"with {axes}"
            )
        if len(array) != frames:
            raise DemonstrationError(f"{path}: {name} has {len(array)} frames, expected {frames}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DemonstrationError(f"{path}: {name} holds values that are not finite")
    return shard
