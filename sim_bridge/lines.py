"""A file that lines are appended to, and that outlasts trouble of its disk.

What the disk does not take waits in memory: nothing is lost while the process lives, and nothing is
written twice.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from agent.durable import StorageError, explain_trouble, may_pass, storage_errors

RETRY_PAUSE_S = 0.5  # between two tries of a disk that takes nothing

log = logging.getLogger(__name__)


class LineFile:
    """An open file of lines.

    `settle` never waits for a disk to recover: it says whether everything was taken, and is to be
    called again until it was. Trouble is told when it begins and when it is over.
    """

    def __init__(
        self, path: Path, *, is_synced: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Opens or creates `path`. is_synced: its lines outlast a loss of power. Raises OSError."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o644)
        self._path, self._is_synced, self._clock = path, is_synced, clock
        self._waiting = bytearray()  # not written yet
        self._unsynced: list[tuple[int, bytes]] = []  # written: where, and what
        self._is_doubtful = False  # a sync failed: the system may have dropped what was unsynced
        self._began_s: float | None = None  # of the trouble that lasts
        self._retry_at_s = float("-inf")

    @property
    def waiting_bytes(self) -> int:
        """What the disk has not taken yet."""
        return len(self._waiting)

    @property
    def is_settled(self) -> bool:
        """Whether everything that was appended is where it belongs."""
        return not self._waiting and not self._unsynced

    def append(self, line: bytes) -> None:
        """Takes one line, with its newline; `settle` writes it."""
        self._waiting += line

    def settle(self) -> bool:
        """Writes, and syncs, what is not yet; False while the disk is in trouble that may pass.

        Raises StorageError for what time does not mend.
        """
        if self.is_settled:
            return True
        now_s = self._clock()
        return now_s >= self._retry_at_s and self._try(now_s)

    def close(self) -> None:
        """Tries a last time and closes. Raises StorageError if lines are lost then."""
        try:
            is_taken = self.is_settled or self._try(self._clock())
        finally:
            os.close(self._fd)
        if not is_taken:
            lines = self._waiting.count(b"\n") + sum(d.count(b"\n") for _, d in self._unsynced)
            raise StorageError(
                f"{self._path}: its disk did not take the last lines ({lines}), which may be lost; "
                "free disk space, or mend what was said of it before"
            )

    def _try(self, now_s: float) -> bool:
        try:
            self._write()
            if self._is_synced:
                self._sync()
        except OSError as error:
            if not may_pass(error):
                with storage_errors(self._path):
                    raise
            self._retry_at_s = now_s + RETRY_PAUSE_S
            if self._began_s is None:
                self._began_s = now_s
                told = explain_trouble(error, self._path)
                log.warning("%s; its lines wait until the disk takes them", told)
            return False
        self._unsynced.clear()
        if self._began_s is not None:
            log.warning("%s is written again, after %.0f s", self._path, now_s - self._began_s)
            self._began_s = None
        return True

    def _write(self) -> None:
        """Raises OSError; what was not written then still waits."""
        while self._waiting:
            written = os.write(self._fd, self._waiting)
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            self._unsynced.append((end - written, bytes(self._waiting[:written])))
            del self._waiting[:written]

    def _sync(self) -> None:
        """Raises OSError."""
        if self._is_doubtful:
            self._write_again()
        try:
            os.fdatasync(self._fd)
        except OSError:
            self._is_doubtful = True
            raise
        self._is_doubtful = False

    def _write_again(self) -> None:
        """What a failed sync may have dropped, in its place: a next sync alone proves nothing."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)  # appending would not go there
        try:
            for offset, data in self._unsynced:
                while data:
                    written = os.pwrite(descriptor, data, offset)
                    offset, data = offset + written, data[written:]
        finally:
            os.close(descriptor)
