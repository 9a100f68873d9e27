"""Writes recorded episodes as a LeRobot data set of version 3.0: parquet files and JSON.

A frame is one executed step. Pictures are PNG inside the parquet files (the format's "image", not
its "video"), so they stay what the policy saw. `observation.*` repeats through a chunk, as the
policy saw nothing newer; `steps_since_observation` says how old it is.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from agent.episode import ChunkRecord
from agent.process.optional import needing
from agent.wire.errors import PerennialError
from agent.wire.messages import Outcome
from learner.lerobot_statistics import (
    Statistics,
    number_statistics,
    picture_statistics,
    pixel_counts,
)
from learner.recording import Recording

with needing("demos"):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

VERSION = "v3.0"
FILE_BYTES, FILES_PER_CHUNK = 100 << 20, 1000
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
PICTURE = "observation.images."
STATE, ACTION = "observation.state", "action"
# Not "observation.…" nor "action…", which a LeRobot policy would take for its own.
NUMBERS = {
    "executed": "int64", "steps_since_observation": "int64",
    "next.reward": "float32", "next.done": "bool", "next.success": "bool",
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
    "task_index": "int64",
}  # fmt: skip
WORDS = ("version", "outcome")
OF_EPISODE = ("episode_id", "suite", "task", "split", "init_state", "phase", "source")
_PNG = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class LeRobotError(PerennialError):
    """Episodes that one LeRobot data set cannot hold."""


class LeRobotWriter:
    """Writes a data set into an empty folder; complete once `finish` has returned; a context."""

    def __init__(self, root: Path, rate_hz: int) -> None:
        """rate_hz: of the control steps, which episodes do not record."""
        self._root, self._rate_hz = root, rate_hz
        self._features: dict[str, dict[str, Any]] = {}
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []  # of meta/episodes
        self._numbers: dict[str, list[np.ndarray]] = {}
        self._pixels: dict[str, np.ndarray] = {}
        self._suites: set[str] = set()
        self._frames = self._file = 0
        self._sink: io.FileIO | None = None  # of the data file that is open
        self._parquet: pq.ParquetWriter | None = None

    def __enter__(self) -> LeRobotWriter:
        (self._root / "meta").mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close_file()

    def add(self, recording: Recording) -> None:
        """The next episode. Raises LeRobotError if its cameras or dimensions are others."""
        features = _features_of(recording)
        self._features = self._features or features
        shapes = [_shapes(chunk) for chunk in recording.episode.chunks]
        if features != self._features or any(each != shapes[0] for each in shapes):
            meta = recording.episode.meta
            raise LeRobotError(
                f"episode {meta.episode_id} ({meta.suite}, {meta.task}) has other cameras or "
                "dimensions than those before; export the folders of each suite by themselves"
            )
        numbers = self._numbers_of(recording)
        pictures, statistics = self._pictures_of(recording)
        statistics |= {name: number_statistics(values) for name, values in numbers.items()}
        for name, values in numbers.items():
            self._numbers.setdefault(name, []).append(values)
        self._write(recording, numbers, pictures)
        self._rows.append(self._row_of(recording, statistics))
        self._suites.add(recording.episode.meta.suite)
        self._frames += len(recording)

    def finish(self) -> None:
        """Writes what describes the episodes."""
        self._close_file()
        meta = self._root / "meta"
        (meta / "info.json").write_text(json.dumps(self._info(), indent=1), "utf-8")
        (meta / "stats.json").write_text(json.dumps(self._statistics(), indent=1), "utf-8")
        pq.write_table(_task_table(list(self._tasks)), meta / "tasks.parquet")
        episodes = meta / "episodes" / FILE.format(chunk_index=0, file_index=0)
        episodes.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._rows), episodes)

    def _numbers_of(self, recording: Recording) -> dict[str, np.ndarray]:
        """Feature -> [N, D]."""
        count, meta = len(recording), recording.episode.meta
        task = self._tasks.setdefault(meta.instruction, len(self._tasks))
        last = np.arange(count) == count - 1
        success = last & (recording.episode.end.outcome == Outcome.SUCCESS)
        proprio_TP = np.stack([chunk.proprio for chunk in recording.episode.chunks])
        columns = {
            STATE: proprio_TP[recording.chunk_N],
            ACTION: recording.actions_NA,
            "executed": recording.executed_N,
            "steps_since_observation": recording.age_N,
            "next.reward": success,
            "next.done": last,
            "next.success": success,
            "timestamp": np.arange(count) / self._rate_hz,
            "frame_index": np.arange(count),
            "episode_index": np.full(count, len(self._rows)),
            "index": self._frames + np.arange(count),
            "task_index": np.full(count, task),
        }
        return {
            name: values.astype(self._features[name]["dtype"]).reshape(count, -1)
            for name, values in columns.items()
        }

    def _pictures_of(self, recording: Recording) -> tuple[dict[str, list], dict[str, Statistics]]:
        """Feature -> N cells, and their statistics; every picture is encoded once."""
        weights_T = np.bincount(recording.chunk_N, minlength=len(recording.episode.chunks))
        pictures, statistics = {}, {}
        for name in (name for name in self._features if name.startswith(PICTURE)):
            images = [chunk.images[name[len(PICTURE) :]] for chunk in recording.episode.chunks]
            cells = [{"bytes": _png(image), "path": None} for image in images]
            pictures[name] = [cells[chunk] for chunk in recording.chunk_N]
            counts = np.zeros((3, 256), np.int64)
            for weight, image in zip(weights_T, images, strict=True):
                counts += weight * pixel_counts(image)
            self._pixels[name] = self._pixels.get(name, 0) + counts
            statistics[name] = picture_statistics(counts, len(recording))
        return pictures, statistics

    def _write(
        self, recording: Recording, numbers: dict[str, np.ndarray], pictures: dict[str, list]
    ) -> None:
        versions = [recording.episode.chunks[chunk].version for chunk in recording.chunk_N]
        outcomes = [recording.episode.end.outcome] * len(recording)
        arrays: dict[str, pa.Array] = {
            **{name: pa.array(cells, _PNG) for name, cells in pictures.items()},
            **{name: _column(values) for name, values in numbers.items()},
            "version": pa.array(versions, pa.string()),
            "outcome": pa.array(outcomes, pa.string()),
        }
        table = pa.table({name: arrays[name] for name in self._features})
        if self._sink is not None and self._sink.tell() > FILE_BYTES:
            self._close_file()
            self._file += 1
        if self._sink is None or self._parquet is None:
            path = self._root / "data" / FILE.format(**self._place())
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = path.open("wb", buffering=0)
            # The dictionary holds a chunk's picture once, not once a step.
            self._parquet = pq.ParquetWriter(
                self._sink, table.schema, compression="zstd", dictionary_pagesize_limit=FILE_BYTES
            )
        self._parquet.write_table(table)

    def _close_file(self) -> None:
        if self._parquet is not None and self._sink is not None:
            self._parquet.close()
            self._sink.close()
        self._parquet = self._sink = None

    def _place(self) -> dict[str, int]:
        chunk, file = divmod(self._file, FILES_PER_CHUNK)
        return {"chunk_index": chunk, "file_index": file}

    def _row_of(self, recording: Recording, statistics: dict[str, Statistics]) -> dict[str, Any]:
        meta, place = recording.episode.meta, self._place()
        return {
            "episode_index": len(self._rows),
            "tasks": [meta.instruction],
            "length": len(recording),
            **{f"data/{name}": value for name, value in place.items()},
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + len(recording),
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            **{name: getattr(meta, name) for name in OF_EPISODE},
            "version": meta.version,
            "outcome": recording.episode.end.outcome,
            **{
                f"stats/{feature}/{name}": value
                for feature, found in statistics.items()
                for name, value in found.items()
            },
        }

    def _statistics(self) -> dict[str, Statistics]:
        return {
            **{name: picture_statistics(n, self._frames) for name, n in self._pixels.items()},
            **{name: number_statistics(np.concatenate(v)) for name, v in self._numbers.items()},
        }

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": VERSION,
            "robot_type": ", ".join(sorted(self._suites)),
            "total_episodes": len(self._rows),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": FILE_BYTES >> 20,
            "video_files_size_in_mb": 200,
            "fps": self._rate_hz,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": f"data/{FILE}",
            "video_path": None,
            "features": self._features,
        }


def _shapes(chunk: ChunkRecord) -> dict[str, tuple[int, ...]]:
    return {camera: image.shape for camera, image in chunk.images.items()}


def _features_of(recording: Recording) -> dict[str, dict[str, Any]]:
    first = recording.episode.chunks[0]
    axes = ["height", "width", "channels"]
    return {
        **{
            f"{PICTURE}{camera}": {"dtype": "image", "shape": list(shape), "names": axes}
            for camera, shape in _shapes(first).items()
        },
        STATE: {"dtype": "float32", "shape": list(first.proprio.shape), "names": None},
        ACTION: {"dtype": "float32", "shape": [recording.actions_NA.shape[1]], "names": None},
        **{name: {"dtype": kind, "shape": [1], "names": None} for name, kind in NUMBERS.items()},
        **{name: {"dtype": "string", "shape": [1], "names": None} for name in WORDS},
    }


def _column(values_ND: np.ndarray) -> pa.Array:
    """One number a cell, or a list of fixed length."""
    flat = pa.array(values_ND.ravel())
    width = values_ND.shape[1]
    return flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)


def _png(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG", compress_level=1)
    return data.getvalue()


def _task_table(instructions: list[str]) -> pa.Table:
    """Instructions as the row index of `task_index`, which is how pandas stores it."""
    index = "__index_level_0__"
    columns = [
        {"name": name, "field_name": field, "pandas_type": pandas, "numpy_type": kind,
         "metadata": None}
        for name, field, pandas, kind in (
            ("task_index", "task_index", "int64", "int64"), (None, index, "unicode", "object")
        )
    ]  # fmt: skip
    described = {"index_columns": [index], "column_indexes": [], "columns": columns}
    table = pa.table({"task_index": range(len(instructions)), index: instructions})
    return table.replace_schema_metadata({"pandas": json.dumps(described)})
