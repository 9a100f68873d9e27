"""What "on disk" means here: file contents, directory entries and locks that survive a crash.

A new or renamed file is durable only when its bytes *and* its directory entry are synced. Every
OSError leaves this module as a StorageError that names the path and the way out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.process.errors import PerennialError

LOCK_NAME = "lock"

_WAYS_OUT = {
    errno.ENOSPC: "free disk space, then start again",
    errno.EDQUOT: "free disk quota, then start again",
    errno.EACCES: "make the path writable for this user or choose another one",
    errno.EPERM: "make the path writable for this user or choose another one",
    errno.EROFS: "the file system is read-only: choose another path",
    errno.ENOTDIR: "a file is where a folder is needed: choose another path",
}


class StorageError(PerennialError):
    """The disk refused; the message has the path, the cause and the way out."""


class StateLocked(StorageError):
    """Another process holds this state directory."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn OSErrors raised inside into StorageErrors about `path`."""
    try:
        yield
    except OSError as error:
        way_out = _WAYS_OUT.get(error.errno or 0, "check the disk")
        raise StorageError(f"{path}: {error.strerror or error}; {way_out}") from error


def sync_folder(folder: Path) -> None:
    """Make the directory entries of `folder` durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, durably; one that is there stays. Raises OSError.

    A file is lost with its folder's name, however well it was synced itself.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def write_synced(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Create `path` with `data` synced; its directory entry is not synced. Raises OSError.

    `mode` less the umask holds from the file's first moment on.
    """
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, mode: int = 0o666, *, is_of_folder: bool = False) -> None:
    """Put `data` at `path` so that a crash leaves the old file or the new one, durably.

    `mode` is that of the new file, less the umask. With `is_of_folder` it belongs to the folder's
    owner even if root writes it: a service that is not root must be able to read it. Raises
    StorageError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with storage_errors(path):
        try:
            write_synced(temporary, data, mode)
            if is_of_folder and os.geteuid() == 0:
                owner = path.parent.stat()
                os.chown(temporary, owner.st_uid, owner.st_gid)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` alone, creating it if needed, until the block ends or the process dies.

    Raises StateLocked at once if another process (or another block of this one) holds it.
    """
    path = folder / LOCK_NAME
    with storage_errors(folder):
        make_folder(folder)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(descriptor, folder)
        yield
    finally:
        os.close(descriptor)  # closing releases the lock; the file stays, or two could hold it


def _take(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise StateLocked(
            f"{folder} is in use by process {holder}; stop it or choose another folder"
        ) from error
    with storage_errors(folder):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode("ascii"), 0)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `path`, synced, when the block ends well.

    Raises StorageError; after any error nothing is left at `path`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with storage_errors(path):
        make_folder(path.parent)
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.iterdir():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            sync_folder(temporary)
            temporary.rename(path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
