"""What "on disk" means here: file contents, directory entries and locks that survive a crash.

A new or renamed file is durable only when its bytes *and* its directory entry are synced. Every
OSError leaves this module as a StorageError that names the path and the way out. `may_pass` says
which of them is worth another try.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from agent.process.errors import PerennialError
from agent.process.folders import try_writing
from agent.process.os_errors import describe_os_error
from agent.process.stopping import StopFlag

LOCK_NAME = "lock"

# What a file system says that does not know a call at all.
_UNKNOWN_CALLS = frozenset(
    {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY}
)
_NO_LOCKS = _UNKNOWN_CALLS | {errno.ENOLCK}
_UNFINISHED = ".unfinished"  # in a folder of ours that has not got its name yet; held by a lock
_DATABASE_WAYS_OUT = {
    sqlite3.SQLITE_BUSY: "another process holds its lock: end that one (`fuser PATH` names it)",
    sqlite3.SQLITE_LOCKED: "another process holds its lock: end that one (`fuser PATH` names it)",
    sqlite3.SQLITE_FULL: "free disk space",
    sqlite3.SQLITE_CANTOPEN: "check its folder, and the limit of open files (ulimit -n)",
    sqlite3.SQLITE_READONLY: "make the path writable for this user or choose another one",
    sqlite3.SQLITE_CORRUPT: "it is damaged: put back a copy, or choose another folder",
    sqlite3.SQLITE_NOTADB: "it is no database: put back a copy, or choose another folder",
}
# A file system that was full, out of reach or read-only is mended while the process runs.
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "EAGAIN", "EINTR", "ENOMEM", "ENOBUFS", "EIO"),
        *("EBUSY", "ENOLCK", "EROFS", "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EREMOTEIO"),
    )
    if hasattr(errno, name)
)
_DATABASE_PASSING = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR),
        *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL),
        sqlite3.SQLITE_READONLY,
    }
)


# Read again it is no better: the file is gone, or its disk does not give the bytes back.
LOST = frozenset({errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR})


class StorageError(PerennialError):
    """The disk refused; the message has the path, the cause and the way out."""


class StateLocked(StorageError):
    """Another process holds this state directory."""


class NoLocks(StorageError):
    """The file system cannot lock files."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn OSErrors raised inside into StorageErrors about `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError(describe_os_error(error, path)) from error


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors raised inside into StorageErrors about the database at `path`."""
    try:
        yield
    except sqlite3.Error as error:
        way_out = _DATABASE_WAYS_OUT.get(_database_code(error), "check the disk and the file")
        raise StorageError(f"{path}: {error}; {way_out}") from error


def may_pass(error: BaseException) -> bool:
    """Whether trying again may help: the disk is full or does not answer, a lock is held, ...

    A StorageError is judged by what caused it.
    """
    if isinstance(error, StorageError):
        return error.__cause__ is not None and may_pass(error.__cause__)
    if isinstance(error, sqlite3.Error):
        return _database_code(error) in _DATABASE_PASSING
    return isinstance(error, OSError) and error.errno in _PASSING


def may_be_read_later(error: BaseException) -> bool:
    """Whether what could not be read is there all the same, and not damaged.

    An error of ours is judged by what caused it.
    """
    while isinstance(error, PerennialError) and error.__cause__ is not None:
        error = error.__cause__
    is_lost = isinstance(error, OSError) and error.errno in LOST
    return may_pass(error) and not is_lost


def explain_trouble(error: BaseException, path: Path) -> str:
    """One line for an error of the disk or of a database at `path`, with the way out."""
    try:
        with storage_errors(path), database_errors(path):
            raise error
    except StorageError as told:
        return str(told)


def _database_code(error: sqlite3.Error) -> int:
    """The primary result code; -1 for errors that SQLite itself did not raise."""
    code: int = getattr(error, "sqlite_errorcode", -1)
    return code & 0xFF if code >= 0 else code


def require_writable(folder: Path) -> None:
    """Raises StorageError unless this user can write into `folder`, or make it; changes nothing."""
    with storage_errors(folder):
        try_writing(folder)


def sync_folder(folder: Path) -> None:
    """Make the directory entries of `folder` durable. Raises OSError.

    Some file systems (of networks, of other systems) know no such call for folders: there an entry
    is as durable as they make it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNKNOWN_CALLS:
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> list[Path]:
    """Make `folder` and what is missing above it, durably: those made, the innermost first.

    One that is there stays. A file is lost with its folder's name, however well it was synced
    itself. Raises OSError.
    """
    missing = _missing(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)
    return missing


def _missing(folder: Path) -> list[Path]:
    """Those of `folder` and the folders above it that are not there, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


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
    temporary = _unused_name(path)
    with storage_errors(path), StopFlag().putting_away():
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
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` durably when the block ends well.

    Raises StorageError; after any error `path` is as it was.
    """
    temporary = _unused_name(path)
    with storage_errors(path), StopFlag().putting_away():
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def set_aside(path: Path) -> Path:
    """Rename what is damaged, for a look at it; returns its new name. Raises StorageError."""
    aside = path.with_name(f"{path.name[:200]}.damaged-{secrets.token_hex(4)}")
    with storage_errors(path):
        os.rename(path, aside)
        sync_folder(path.parent)
    return aside


def _unused_name(path: Path) -> Path:
    """A name beside `path` that nobody else can have chosen, and no longer than `path` allows."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}")


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


def take_lock(descriptor: int, path: Path) -> bool:
    """Lock an open file for this process; False if another holds it.

    Raises:
        NoLocks: the file system cannot; two processes would write there at once.
        StorageError: the disk refused.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            with storage_errors(path):
                raise
        raise NoLocks(
            f"{path}: its file system has no file locks ({error.strerror}), which keep a second "
            "process away; choose a folder on a local disk, or mount it with locks"
        ) from error
    return True


def _take(descriptor: int, folder: Path) -> None:
    if not take_lock(descriptor, folder):
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise StateLocked(
            f"{folder} is in use by process {holder}; stop it or choose another folder"
        )
    with storage_errors(folder):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode("ascii"), 0)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `path`, synced, when the block ends well.

    What killed processes left unfinished beside `path` is removed first; nothing else is.

    Raises:
        StorageError: something is at `path`, or the disk refused; nothing is left at `path` then.
    """
    with storage_errors(path), StopFlag().putting_away(), _removed_unless_used(path.parent):
        if path.is_symlink() or path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        make_folder(path.parent)
        _remove_unfinished(path.parent)
        temporary = _unused_name(path)
        temporary.mkdir()
        mark = temporary / _UNFINISHED
        descriptor = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with suppress(NoLocks):  # then nobody else takes this folder for a leftover either
                if not take_lock(descriptor, path):
                    raise StateLocked(f"{path}: another process tidies up beside it; try again")
            with _named_as_it_is(temporary):
                yield temporary
            mark.unlink()
            _sync_tree(temporary)
            temporary.rename(path)
            sync_folder(path.parent)
        finally:
            os.close(descriptor)
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _named_as_it_is(temporary: Path) -> Iterator[None]:
    """Has what fills a folder blame the file that it could not read, not the folder."""
    try:
        yield
    except OSError as error:
        if not error.filename or temporary in Path(error.filename).parents:
            raise
        raise StorageError(describe_os_error(error)) from error


@contextmanager
def _removed_unless_used(folder: Path) -> Iterator[None]:
    """Removes the folders again, `folder` and above, that the block made and left empty."""
    missing = _missing(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # from here on they hold something, or are not there
            for path in missing:
                path.rmdir()


def _sync_tree(folder: Path) -> None:
    for inner in folder.iterdir():
        if inner.is_dir():
            _sync_tree(inner)
        else:
            with inner.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_folder(folder)


def _remove_unfinished(folder: Path) -> None:
    """Remove folders in `folder` that `new_folder` made and whose process was killed."""
    for mark in folder.glob(f".*/{_UNFINISHED}"):
        if mark.is_symlink() or mark.parent.is_symlink() or not mark.is_file():
            continue
        descriptor = os.open(mark, os.O_RDWR | os.O_CLOEXEC)
        try:
            if take_lock(descriptor, mark):
                shutil.rmtree(mark.parent)
        except NoLocks:
            return
        finally:
            os.close(descriptor)
