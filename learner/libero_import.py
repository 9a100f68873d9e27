"""LIBERO's published demonstrations as shards: one shard a demonstration.

A frame is labelled with the next K actions of the demonstrator; behind the last one the hand holds
still at the gripper command last given. `state` and `target` are empty: what the simulator knew of
the objects is not in the files.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.durable import replace_file
from agent.model.images import ImagePipeline
from agent.process.shown import printable
from agent.process.terminal import counting
from learner.demonstrations import META_FILE, DemonstrationError, read_arrays
from learner.libero_hdf5 import ACTION_DIM, Demonstration, DemonstrationFile, noop_mask, open_file


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """chunk: actions per label. stride: control steps between frames. image_size: None keeps it."""

    chunk: int = 8
    stride: int = 1
    image_size: int | None = None
    keep_noops: bool = False


@dataclass(frozen=True, slots=True)
class Imported:
    """What `out` holds now: demonstrations, their frames, and how many others were skipped."""

    demonstrations: int
    frames: int
    skipped: int


def import_files(paths: list[Path], out: Path, settings: ImportSettings) -> Imported:
    """Write the shards that `out` lacks.

    A demonstration that cannot be used is named, with its file and why; the others go on. It keeps
    its number: once the file is mended, the same import adds it.

    Raises:
        DemonstrationError: a file that is none, no demonstration that can be used, or `out` holds
            another set.
        StorageError, OSError: the disk refused.
    """
    tasks, places = _survey(paths)
    out.mkdir(parents=True, exist_ok=True)
    files = [path.name for path in paths]
    _write_meta(out, {"config": {**asdict(settings), "files": files}, "tasks": tasks})
    imported = frames = 0
    with counting("demonstrations", len(places)) as count:
        for task, path in enumerate(paths):
            with open_file(path) as file:
                for name in file.names:
                    episode = places.index((task, name))
                    try:
                        frames += _import_one(file, name, task, episode, out, settings)
                        imported += 1
                    except DemonstrationError as error:
                        count.say(f"skipped {printable(error, 1000)}")
                    count.advance()
    if not imported:
        raise DemonstrationError(
            f"none of {len(places)} demonstrations in {', '.join(map(str, paths))} can be used"
        )
    return Imported(imported, frames, len(places) - imported)


def frames_of(demo: Demonstration, settings: ImportSettings) -> dict[str, np.ndarray]:
    """Every `stride`-th step as a frame; keys as in a shard, without task and episode."""
    still_A = np.zeros(ACTION_DIM, np.float32)
    still_A[-1] = demo.actions_TA[-1, -1]
    padded_TA = np.concatenate([demo.actions_TA, np.tile(still_A, (settings.chunk, 1))])
    steps = np.arange(0, len(demo), settings.stride)
    seen = demo.steps(steps)
    size = settings.image_size or max(seen.images["agentview"].shape[1:3])
    pipeline = ImagePipeline(size)
    return {
        **{camera: pipeline.prepare(images) for camera, images in seen.images.items()},
        "proprio": seen.proprio_TP,
        "actions": padded_TA[steps[:, None] + np.arange(settings.chunk)],
        "state": np.zeros((len(steps), 0), np.float32),
        "target": np.zeros((len(steps), 0), np.float32),
    }


def _survey(paths: list[Path]) -> tuple[list[dict[str, str]], list[tuple[int, str]]]:
    """The tasks of the files, and (task, name) of every demonstration."""
    tasks: list[dict[str, str]] = []
    places: list[tuple[int, str]] = []
    for path in paths:
        with open_file(path) as file:
            if any(file.slug == task["slug"] for task in tasks):
                raise DemonstrationError(f"{path}: a second file of the task '{file.slug}'")
            places += [(len(tasks), name) for name in file.names]
            tasks.append({"slug": file.slug, "instruction": file.instruction})
    if not places:
        raise DemonstrationError(f"no demonstration in {', '.join(map(str, paths))}")
    return tasks, places


def _import_one(
    file: DemonstrationFile, name: str, task: int, episode: int, out: Path, settings: ImportSettings
) -> int:
    """Writes the shard unless it is there; returns its frames."""
    path = out / f"shard-{episode:05d}.npz"
    if path.exists():
        return len(read_arrays(path, ("task",))["task"])
    demo = file.read(name)
    if not settings.keep_noops:
        demo = demo.steps(~noop_mask(demo.actions_TA))
    if not len(demo):
        raise DemonstrationError(f"{file.path}: data/{name}: every action is a no-op")
    arrays: dict[str, Any] = frames_of(demo, settings)
    count = len(arrays["proprio"])
    arrays["task"] = np.full(count, task, np.int16)
    arrays["episode"] = np.full(count, episode, np.int32)
    shard = io.BytesIO()
    np.savez(shard, **arrays)
    replace_file(path, shard.getvalue())
    return count


def _write_meta(out: Path, meta: dict[str, Any]) -> None:
    path = out / META_FILE
    try:
        is_other = path.exists() and json.loads(path.read_text("utf-8")) != meta
    except (ValueError, RecursionError):
        is_other = True
    if is_other:
        raise DemonstrationError(f"{path}: describes other demonstrations; choose another --out")
    replace_file(path, json.dumps(meta, indent=1).encode())
