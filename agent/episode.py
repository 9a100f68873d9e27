"""One episode: what it holds, what must be true of it, and its bytes as one MCAP file.

Axes: T chunks of the episode, K actions of a chunk, A action dimensions, P proprio dimensions.
The file has the topics "meta" (one message), "chunk" (T) and "end" (one), each packed by
`agent.wire.codec.pack`; images are kept losslessly, exactly the pixels that the policy saw.
"""

from __future__ import annotations

import io
import re
import secrets
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from mcap.exceptions import McapError
from mcap.records import Channel, Message
from mcap.stream_reader import StreamReader

from agent.process.clock import unix_ns
from agent.process.stand_ins import describe_stand_in
from agent.records import from_plain
from agent.wire.codec import unpack
from agent.wire.errors import PerennialError, WireError
from agent.wire.messages import Executed, Outcome, Phase

SCHEMA = 2
SOURCES = ("policy", "expert")
CHOICE_TYPES = (np.int32, np.float32)
MAX_EPISODE_BYTES = 1 << 30
_EPISODE_ID = re.compile(r"[0-9a-f]{32}")
_MAGIC = b"\x89MCAP0\r\n"
_FOOTER_BYTES = 1 + 8 + 20  # opcode, length, (summary start, summary offset start, summary CRC)
_DATA_END_BYTES = 1 + 8 + 4  # opcode, length, data CRC
# Everything that the parsers below raise for bytes that are no MCAP file.
_PARSE_ERRORS = (
    McapError,
    zstandard.ZstdError,
    struct.error,
    ValueError,
    OverflowError,
)


class EpisodeInvalid(PerennialError):
    """A record that no episode can hold: type, shape, order or a non-finite value."""


class EpisodeCorrupt(PerennialError):
    """Bytes that are not one whole, unaltered episode."""


@dataclass(frozen=True, slots=True)
class EpisodeMeta:
    """Where an episode comes from; order_id, slot_id are "" for a robot's own task."""

    episode_id: str
    order_id: str
    slot_id: str
    suite: str
    task: str
    instruction: str
    split: str
    init_state: int
    phase: str
    version: str
    horizon_steps: int
    temperature: float
    run_seed: int
    noise_key: str
    slot_index: int
    policy: str
    base_sha256: str
    client_id: str
    started_unix_s: float
    source: str = "policy"
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """One observation and its answer.

    step_index: 0..T-1. images: camera -> u8[H, W, 3], {} where they are not kept. proprio: f32[P].
    choices_KA: what was drawn: i32 token bins, or f32 normalised actions of a regressing policy.
    logprobs_KA: f32, of those choices when drawn. actions_KA: f32,
    the robot's units. version: the adapter that answered.
    """

    step_index: int
    images: dict[str, np.ndarray]
    proprio: np.ndarray
    choices_KA: np.ndarray
    logprobs_KA: np.ndarray
    actions_KA: np.ndarray
    version: str

    @property
    def size_bytes(self) -> int:
        """Of its arrays."""
        small = (self.proprio, self.choices_KA, self.logprobs_KA, self.actions_KA)
        return sum(array.nbytes for array in (*self.images.values(), *small))


@dataclass(frozen=True, slots=True)
class EndRecord:
    """How it ended. steps: control steps taken. executed_TK: u8 `Executed` codes."""

    outcome: str
    steps: int
    executed_TK: np.ndarray
    reason: str
    sealed_unix_s: float


@dataclass(frozen=True, slots=True)
class Episode:
    meta: EpisodeMeta
    chunks: list[ChunkRecord]
    end: EndRecord


@dataclass(slots=True)
class EpisodePrefix:
    """What can be read of a file that may be torn; `problem` says what stopped the reading."""

    meta: EpisodeMeta | None = None
    chunks: list[ChunkRecord] = field(default_factory=list)
    end: EndRecord | None = None
    problem: str = ""


def mint_episode_id() -> str:
    """A fresh id: UUID version 7 as 32 hex digits, so ids sort by time of minting."""
    value = unix_ns() // 1_000_000 << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 7 << 76
    return f"{value & ~(3 << 62) | 2 << 62:032x}"


def check_episode_id(episode_id: str) -> str:
    """The id itself, safe as a file name. Raises EpisodeInvalid."""
    if not _EPISODE_ID.fullmatch(episode_id):
        raise EpisodeInvalid(f"episode id {episode_id!r:.60}: expected 32 lower-case hex digits")
    return episode_id


# ---- invariants ------------------------------------------------------------------------------


class EpisodeChecker:
    """The invariants of one episode, record by record; used before writing and while reading."""

    def __init__(self, meta: EpisodeMeta) -> None:
        """Raises EpisodeInvalid, as the methods do."""
        check_episode_id(meta.episode_id)
        _require(meta.phase in set(Phase), f"phase {meta.phase!r:.40}, expected {[*Phase]}")
        _require(meta.source in SOURCES, f"source {meta.source!r:.40}, expected {SOURCES}")
        _require(meta.schema == SCHEMA, f"schema {meta.schema}, this version reads {SCHEMA}")
        _require(meta.temperature >= 0, f"temperature {meta.temperature}, expected >= 0")
        self._shapes: tuple[tuple[int, ...], tuple[int, ...], type] | None = None
        self._T = 0

    def chunk(self, chunk: ChunkRecord) -> None:
        """The next chunk of the episode."""
        _require(chunk.step_index == self._T, f"chunk {chunk.step_index}, expected chunk {self._T}")
        for camera, image in chunk.images.items():
            _check_array(f"image {camera!r:.40}", image, np.uint8, 3)
            _require(image.shape[2] == 3, f"image {camera!r:.40}: shape {image.shape}, not HWC RGB")
        _check_array("proprio", chunk.proprio, np.float32, 1)
        kind = chunk.choices_KA.dtype.type
        _require(kind in CHOICE_TYPES, f"choices_KA: {kind.__name__}, expected int32 or float32")
        _check_array("choices_KA", chunk.choices_KA, kind, 2)
        _check_array("logprobs_KA", chunk.logprobs_KA, np.float32, 2)
        _check_array("actions_KA", chunk.actions_KA, np.float32, 2)
        answers = {chunk.choices_KA.shape, chunk.logprobs_KA.shape, chunk.actions_KA.shape}
        _require(len(answers) == 1, f"chunk {self._T}: choices, logprobs, actions have {answers}")
        shapes = (chunk.proprio.shape, chunk.choices_KA.shape, kind)
        _require(
            self._shapes in (None, shapes),
            f"chunk {self._T}: proprio, choices have {shapes}, chunk 0 had {self._shapes}",
        )
        self._shapes = shapes
        self._T += 1

    def end(self, end: EndRecord) -> None:
        """The end record, after the last chunk."""
        _require(end.outcome in set(Outcome), f"outcome {end.outcome!r:.40}, not in {[*Outcome]}")
        _require(end.steps >= 0, f"steps {end.steps}, expected >= 0")
        _check_array("executed_TK", end.executed_TK, np.uint8, 2)
        chunk_steps = self._shapes[1][0] if self._shapes else end.executed_TK.shape[1]
        _require(
            end.executed_TK.shape == (self._T, chunk_steps),
            f"executed_TK has {end.executed_TK.shape}, expected {(self._T, chunk_steps)}",
        )
        _require(bool((end.executed_TK <= max(Executed)).all()), "executed_TK: unknown code")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise EpisodeInvalid(message)


def _check_array(name: str, array: np.ndarray, dtype: type, ndim: int) -> None:
    _require(isinstance(array, np.ndarray), f"{name}: expected an array, got {type(array)}")
    _require(
        array.dtype == dtype and array.ndim == ndim,
        f"{name}: {array.dtype}{list(array.shape)}, expected {np.dtype(dtype)} of {ndim} axes",
    )
    if array.dtype.kind == "f":
        _require(bool(np.isfinite(array).all()), f"{name}: has NaN or infinite values")


# ---- reading ---------------------------------------------------------------------------------


def read_episode(source: Path | bytes) -> Episode:
    """A whole episode, every checksum and every invariant verified.

    Raises EpisodeCorrupt for anything else, OSError if the file cannot be read.
    """
    if isinstance(source, bytes):
        data, name = source, "episode"
    else:
        data, name = _read_file(source), str(source)
    _check_checksums(data, name)
    prefix = _read_records(io.BytesIO(data))
    if prefix.problem or prefix.meta is None or prefix.end is None:
        raise EpisodeCorrupt(f"{name}: {prefix.problem or 'has no meta or no end record'}")
    return Episode(prefix.meta, prefix.chunks, prefix.end)


def read_prefix(path: Path) -> EpisodePrefix:
    """What a crash has left: every record up to the first that is torn, damaged or out of order.

    Records come from compressed blocks whose checksum was verified. Raises OSError.
    """
    with open(path, "rb") as file:
        return _read_records(file)


def _read_file(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
        if not path.is_symlink():
            raise
    if not data.startswith(_MAGIC) and (what := describe_stand_in(path)):
        raise EpisodeCorrupt(f"{path}: {what}")
    return data


def _check_checksums(data: bytes, name: str) -> None:
    """Both magics and the CRCs over everything in between, which mcap's readers skip in part."""
    footer_start = len(data) - len(_MAGIC) - _FOOTER_BYTES
    if footer_start < len(_MAGIC) + _DATA_END_BYTES or len(data) > MAX_EPISODE_BYTES:
        raise EpisodeCorrupt(f"{name}: {len(data)} bytes cannot be an episode")
    if not data.startswith(_MAGIC) or not data.endswith(_MAGIC):
        raise EpisodeCorrupt(f"{name}: not a finished MCAP file (torn, or of another kind)")
    opcode, length, summary_start, _, summary_crc = struct.unpack_from("<BQQQI", data, footer_start)
    data_end = summary_start - _DATA_END_BYTES
    if (opcode, length) != (0x02, 20) or not len(_MAGIC) <= data_end < footer_start:
        raise EpisodeCorrupt(f"{name}: damaged footer")
    end_opcode, end_length, data_crc = struct.unpack_from("<BQI", data, data_end)
    view = memoryview(data)
    if (
        (end_opcode, end_length) != (0x0F, 4)
        or zlib.crc32(view[:data_end]) != data_crc
        or zlib.crc32(view[summary_start : -len(_MAGIC) - 4]) != summary_crc
    ):
        raise EpisodeCorrupt(f"{name}: checksum mismatch")


def _read_records(stream: Any) -> EpisodePrefix:
    prefix = EpisodePrefix()
    checker: EpisodeChecker | None = None
    try:
        for topic, value in _messages(stream):
            if topic == "meta" and checker is None:
                meta = from_plain(EpisodeMeta, value, topic)
                checker = EpisodeChecker(meta)
                prefix.meta = meta
            elif topic == "chunk" and checker and not prefix.end:
                chunk = from_plain(ChunkRecord, value, topic)
                checker.chunk(chunk)
                prefix.chunks.append(chunk)
            elif topic == "end" and checker and not prefix.end:
                end = from_plain(EndRecord, value, topic)
                checker.end(end)
                prefix.end = end
            else:
                raise EpisodeInvalid(f"unexpected {topic!r:.40} record")
    except (EpisodeInvalid, WireError) as error:
        prefix.problem = str(error)
    except MemoryError:
        prefix.problem = "it needs more memory than there is"
    except _PARSE_ERRORS:  # in words of mcap or of what it decompresses with
        prefix.problem = f"torn or damaged before byte {stream.tell():,}"
    return prefix


def _messages(stream: Any) -> Iterator[tuple[str, Any]]:
    topics: dict[int, str] = {}
    reader = StreamReader(stream, validate_crcs=True, record_size_limit=MAX_EPISODE_BYTES)
    for record in reader.records:
        if isinstance(record, Channel):
            topics[record.id] = record.topic
        elif isinstance(record, Message):
            yield topics.get(record.channel_id, ""), unpack(record.data)
