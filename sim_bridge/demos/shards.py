"""Demonstration shards: .npz files (no pickle) and the meta.json that describes the set.

A shard is a pure function of its recorder's settings and its number, so a set that was interrupted
is completed by the same command.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np

from agent.durable import replace_file, replacing
from agent.process import StopFlag, die_with
from agent.process.errors import ConfigError
from agent.process.folders import begin_in, check_begun
from agent.process.json_files import DamagedFile, read_json
from agent.process.terminal import counting

META_NAME = "meta.json"
EPISODES_PER_SHARD = 100_000  # id space of one shard's episodes
# (shard, frames) -> arrays of that many frames; sent to worker processes, so a module's own.
Record = Callable[[int, int], dict[str, np.ndarray]]


def shard_rng(seed: int, shard: int) -> np.random.Generator:
    """The randomness of one shard."""
    sequence = np.random.SeedSequence(seed, spawn_key=(shard,))
    return np.random.Generator(np.random.Philox(sequence))


def stack_rows(rows: list[dict[str, np.ndarray]], frames: int) -> dict[str, np.ndarray]:
    """The first `frames` rows as arrays with a leading N axis."""
    return {key: np.stack([row[key] for row in rows[:frames]]) for key in rows[0]}


def write_shards(
    out: Path, meta: dict[str, Any], frames: int, shard_frames: int, record: Record, workers: int
) -> None:
    """Writes every shard that `out` lacks, `workers` at once, with progress on the terminal.

    Raises ValueError if `out` holds the demonstrations of another `meta`, ConfigError if it holds
    anything else.
    """
    check_begun(out, META_NAME, "--out")
    _check_meta(meta, out)
    counts = [min(shard_frames, frames - first) for first in range(0, frames, shard_frames)]
    missing = [i for i in range(len(counts)) if not _shard_path(out, i).exists()]
    done_frames = frames - sum(counts[i] for i in missing)
    with (
        counting("frames", frames, sys.stdout, done=done_frames) as count,
        ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
        ) as pool,
        _ended_on_a_signal(),
    ):
        count.say(f"{len(counts)} shards, {len(counts) - len(missing)} complete")
        jobs = {pool.submit(_write_shard, record, i, counts[i], out, meta): i for i in missing}
        for job in as_completed(jobs):
            job.result()
            count.advance(counts[jobs[job]])
        count.say(f"{frames} frames in {out}")


@contextmanager
def _ended_on_a_signal() -> Iterator[None]:
    """Ends the workers when a signal ends the block, which would wait for their shards."""
    try:
        with StopFlag().putting_away():
            yield
    except SystemExit:
        for worker in active_children():
            worker.terminate()
        raise


@contextmanager
def _finished_first() -> Iterator[None]:
    """Puts SIGTERM off until the block, which writes, has ended."""
    told: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
        if told:
            signal.raise_signal(signal.SIGTERM)


def _begin(parent: int) -> None:
    """A worker ends with its parent, whoever of the two the terminal's Ctrl-C reaches first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)


def _shard_path(out: Path, shard: int) -> Path:
    return out / f"shard-{shard:05d}.npz"


def _write_shard(record: Record, shard: int, frames: int, out: Path, meta: dict[str, Any]) -> None:
    arrays: dict[str, Any] = {**record(shard, frames)}
    with _finished_first():
        _describe(meta, out)  # not before: settings that cannot be recorded would bind the folder
        with replacing(_shard_path(out, shard)) as file:
            np.savez(file, **arrays)


def _describe(meta: dict[str, Any], out: Path) -> None:
    """Writes what describes the set before its first shard; all workers write the same."""
    begin_in(out, META_NAME, "--out")
    if not (out / META_NAME).exists():
        replace_file(out / META_NAME, json.dumps(meta, indent=1).encode())


def _check_meta(meta: dict[str, Any], out: Path) -> None:
    path = out / META_NAME
    if not os.path.lexists(path):
        return
    try:
        found = read_json(path, dict, "remove it and the shards beside it, or choose another --out")
    except DamagedFile as error:
        raise ConfigError(str(error)) from error
    if found != meta:
        raise ValueError(f"{path}: describes other demonstrations; choose another --out")
