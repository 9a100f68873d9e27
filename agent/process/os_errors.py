"""What the system refused, for people: the path, the reason, and the way out."""

from __future__ import annotations

import errno
from pathlib import Path

_WAYS_OUT = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk quota",
    errno.EACCES: "make the path writable for this user or choose another one",
    errno.EPERM: "make the path writable for this user or choose another one",
    errno.EROFS: "the file system is read-only: choose another path",
    errno.ENOTDIR: "a file is where a folder is needed: choose another path",
    errno.EISDIR: "a folder is where a file is needed: choose another path",
    errno.EEXIST: "something of that name is there: choose another path",
    errno.ENOTEMPTY: "something of that name is there: choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "its links lead in a circle: choose another path",
    errno.EXDEV: "its folder is spread over several file systems: choose another path",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or choose another file system",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files: end what holds them",
}


def describe_os_error(error: OSError, path: Path | None = None) -> str:
    """One line: the path (that of the error, where none is given), the reason, the way out."""
    place = path if path is not None else error.filename
    reason = f"{error.strerror or error}; {_WAYS_OUT.get(error.errno or 0, 'check the disk')}"
    return reason if place is None else f"{place}: {reason}"
