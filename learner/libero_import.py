"""LIBERO's published demonstrations as shards: one shard a demonstration.

A frame is labelled with the next K actions of the demonstrator; behind the last one the hand holds
still at the gripper command last given. `state` and `target` are empty: what the simulator knew of
the objects is not in the files.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.durable import replace_file
from agent.model.images import ImagePipeline
from agent.process.folders import begin_in, check_begun
from agent.process.json_files import DamagedFile, read_json
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
    """What `out` holds now, and how much of what was named was skipped."""

    demonstrations: int
    frames: int
    skipped: int  # demonstrations of files that could be read
    skipped_files: int


@dataclass(frozen=True, slots=True)
class _Source:
    """A file's place in a set: its shards are numbered behind those of the sources before it.

    file: its position among the files of the command. names: of its demonstrations; those of a
    file that was read by an earlier import, and cannot be now, are not known.
    """

    file: int
    slug: str
    instruction: str
    demonstrations: int
    names: tuple[str, ...] = ()

    @property
    def task(self) -> dict[str, str]:
        return {"slug": self.slug, "instruction": self.instruction}


def import_files(paths: list[Path], out: Path, settings: ImportSettings) -> Imported:
    """Write the shards that `out` lacks.

    A demonstration or a file that cannot be used is named with the reason; the others go on. Each
    keeps its number: once the file is mended, the same import adds it.

    Raises:
        DemonstrationError: no demonstration that can be used, or `out` holds another set.
        ConfigError: `out` holds anything else.
        StorageError, OSError: the disk refused.
    """
    read, refused = _survey(paths)
    sources = _arrange(paths, read, refused, settings, out)
    check_begun(out, META_FILE, "--out")
    meta = json.dumps(_meta(paths, sources, settings), indent=1).encode()
    shards = _Shards(out, meta)
    imported = frames = first = 0
    expected = sum(source.demonstrations for source in read.values())
    with counting("demonstrations", expected) as count:
        for error in refused.values():
            count.say(f"skipped {printable(error, 1000)}")
        for task, source in enumerate(sources):
            path = paths[source.file]
            for found in _import_source(path, source, task, first, shards, settings):
                if isinstance(found, int):
                    imported, frames = imported + 1, frames + found
                else:
                    count.say(f"skipped {printable(found, 1000)}")
                count.advance()
            first += source.demonstrations
    if not imported:
        raise DemonstrationError(
            f"none of {expected} demonstrations in {', '.join(map(str, paths))} can be used"
        )
    shards.describe()
    return Imported(imported, frames, expected - imported, len(refused))


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


def _survey(paths: list[Path]) -> tuple[dict[int, _Source], dict[int, DemonstrationError]]:
    """Look into every file: what those hold that can be read, and why the others cannot.

    Raises:
        DemonstrationError: none can be read, or two are of one task.
    """
    read: dict[int, _Source] = {}
    refused: dict[int, DemonstrationError] = {}
    for number, path in enumerate(paths):
        try:
            with open_file(path) as file:
                if not file.names:
                    raise DemonstrationError(f"{path}: no demonstration in it")
                read[number] = _Source(
                    number, file.slug, file.instruction, len(file.names), file.names
                )
        except DemonstrationError as error:
            refused[number] = error
    _refuse_second_files(paths, list(read.values()))
    if not read:
        raise DemonstrationError("; ".join(printable(error, 1000) for error in refused.values()))
    return read, refused


def _refuse_second_files(paths: list[Path], sources: list[_Source]) -> None:
    slugs: set[str] = set()
    for source in sources:
        if source.slug in slugs:
            raise DemonstrationError(
                f"{paths[source.file]}: a second file of the task '{source.slug}'"
            )
        slugs.add(source.slug)


def _arrange(
    paths: list[Path],
    read: dict[int, _Source],
    refused: dict[int, DemonstrationError],
    settings: ImportSettings,
    out: Path,
) -> list[_Source]:
    """The files in the order of their shards: first those of earlier imports into `out`.

    Raises:
        DemonstrationError: `out` holds another set.
    """
    earlier = _read_sources(paths, read, refused, settings, out / META_FILE)
    known = [read.get(source.file, source) for source in earlier]
    numbers = {source.file for source in earlier}
    sources = known + [source for number, source in read.items() if number not in numbers]
    _refuse_second_files(paths, sources)
    for before, now in zip(earlier, known, strict=True):
        if (before.task, before.demonstrations) != (now.task, now.demonstrations):
            raise DemonstrationError(
                f"{paths[now.file]}: {now.demonstrations} demonstrations of '{now.slug}', {out} "
                f"was made of {before.demonstrations} of '{before.slug}'; choose another --out"
            )
    return sources


def _read_sources(
    paths: list[Path],
    read: dict[int, _Source],
    refused: dict[int, DemonstrationError],
    settings: ImportSettings,
    path: Path,
) -> list[_Source]:
    """The files that an earlier import has read; none if there was none.

    Raises:
        DemonstrationError: what is there was made otherwise.
    """
    if not path.exists():
        return []
    other = DemonstrationError(f"{path}: describes other demonstrations; choose another --out")
    try:
        meta = read_json(path, dict, "delete it, and the same command goes on with its shards")
        if meta["config"] != _meta(paths, [], settings)["config"]:
            raise other
        if "sources" in meta:
            return [
                _Source(range(len(paths))[file], task["slug"], task["instruction"], int(count))
                for (file, count), task in zip(meta["sources"], meta["tasks"], strict=True)
            ]
        tasks = meta["tasks"]
    except DamagedFile as error:
        raise DemonstrationError(str(error)) from error
    except (ValueError, LookupError, TypeError) as error:
        raise other from error
    # Of a release that wanted every file readable, and did not say what each holds.
    if refused:
        raise next(iter(refused.values()))
    if tasks != [source.task for source in read.values()]:
        raise other
    return list(read.values())


def _meta(paths: list[Path], sources: list[_Source], settings: ImportSettings) -> dict[str, Any]:
    return {
        "config": {**asdict(settings), "files": [path.name for path in paths]},
        "tasks": [source.task for source in sources],
        # Of each task: which of the files, and how many demonstrations it has.
        "sources": [[source.file, source.demonstrations] for source in sources],
    }


def _import_source(
    path: Path, source: _Source, task: int, first: int, shards: _Shards, settings: ImportSettings
) -> Iterator[int | DemonstrationError]:
    """Import a file's demonstrations; yields the frames of each, or why it has none.

    first: the number of its first shard.
    """
    if not source.names:
        return
    try:
        with open_file(path) as file:
            for episode, name in enumerate(source.names, first):
                try:
                    yield _import_one(file, name, task, episode, shards, settings)
                except DemonstrationError as error:
                    yield error
    except DemonstrationError as error:  # it could be opened a moment ago
        yield error


def _import_one(
    file: DemonstrationFile,
    name: str,
    task: int,
    episode: int,
    shards: _Shards,
    settings: ImportSettings,
) -> int:
    """Writes the shard unless it is there; returns its frames."""
    if (path := shards.path(episode)).exists():
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
    shards.write(episode, arrays)
    return count


class _Shards:
    """The shards of one set. An import that has none to write leaves the folder as it was."""

    def __init__(self, out: Path, meta: bytes) -> None:
        """meta: what describes the set; it is written before the first shard."""
        self._out, self._meta = out, meta
        self._is_described = False

    def path(self, episode: int) -> Path:
        """Where the shard of that number is."""
        return self._out / f"shard-{episode:05d}.npz"

    def write(self, episode: int, arrays: dict[str, Any]) -> None:
        """Raises ConfigError, StorageError."""
        self.describe()
        shard = io.BytesIO()
        np.savez(shard, **arrays)
        replace_file(self.path(episode), shard.getvalue())

    def describe(self) -> None:
        """Writes what describes the set, once."""
        if not self._is_described:
            begin_in(self._out, META_FILE, "--out")
            replace_file(self._out / META_FILE, self._meta)
            self._is_described = True
