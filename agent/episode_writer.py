"""Writes one episode's MCAP file so that a crash leaves a readable prefix."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from mcap.writer import CompressionType, Writer

from agent.episode import ChunkRecord, EndRecord, EpisodeMeta
from agent.process.clock import unix_ns
from agent.records import to_plain
from agent.wire.codec import pack

_BLOCK_BYTES = 64 << 10  # of one compressed block: what a torn tail can cost


class _HashedFile:
    """An append-only file that knows the SHA-256 of what was written; buffers until `flush`."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0
        self._pending: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pending.append(data)
        self.sha256.update(data)
        self.size_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size_bytes

    def flush(self) -> None:
        """After an error the rest is still there: to be tried again."""
        rest = memoryview(b"".join(self._pending))
        try:
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
        finally:
            self._pending = [bytes(rest)] if rest else []


class EpisodeWriter:
    """The open file of one episode. Every method raises OSError when the disk refuses.

    `flush`, `sync` and `seal` may be called again then, and go on where they were; but what a sync
    has refused once may be lost, so that no later one is believed. Records are taken as they are:
    check them with `EpisodeChecker` first. The directory entry of the new file is not synced here.
    """

    def __init__(self, path: Path, meta: EpisodeMeta) -> None:
        """Raises FileExistsError if the path is taken: an episode id is written once."""
        self._output = _HashedFile(path)
        self._mcap = Writer(
            self._output,  # type: ignore[arg-type]  # write, tell and flush are all it uses
            chunk_size=_BLOCK_BYTES,
            compression=CompressionType.ZSTD,
            enable_data_crcs=True,
        )
        self._mcap.start(profile="", library="perennial")
        self._channels = {
            topic: self._mcap.register_channel(topic, message_encoding="msgpack", schema_id=0)
            for topic in ("meta", "chunk", "end")
        }
        self._add("meta", meta, 0)
        self._is_finished = self._is_lost = False
        try:
            self.flush()
        except OSError:
            self.abandon()
            path.unlink(missing_ok=True)  # to be begun again
            raise

    def append(self, chunk: ChunkRecord) -> None:
        """Buffer one chunk."""
        self._add("chunk", chunk, chunk.step_index)

    def flush(self) -> None:
        """Hand everything to the operating system: it then survives the death of the process."""
        self._mcap.flush()

    def sync(self) -> None:
        """Flush to the disk: it then survives a loss of power."""
        self.flush()
        self._sync_data()

    def seal(self, end: EndRecord) -> tuple[str, int]:
        """Write the end, sync and close; returns (SHA-256 of the file, size in bytes)."""
        if not self._is_finished:
            self._add("end", end, 0)
            self._mcap.finish()
            self._is_finished = True
        self._output.flush()
        self._sync_data()
        os.close(self._output.descriptor)
        return self._output.sha256.hexdigest(), self._output.size_bytes

    def abandon(self) -> None:
        """Close without an end; what was flushed stays as a torn file."""
        os.close(self._output.descriptor)

    def _sync_data(self) -> None:
        if self._is_lost:
            raise OSError(errno.EIO, "an earlier sync of this episode failed")
        try:
            os.fdatasync(self._output.descriptor)
        except OSError:
            self._is_lost = True  # the system may have dropped what it could not write
            raise

    def _add(self, topic: str, record: EpisodeMeta | ChunkRecord | EndRecord, index: int) -> None:
        now_ns = unix_ns()
        self._mcap.add_message(
            self._channels[topic], now_ns, pack(to_plain(record)), now_ns, sequence=index
        )
