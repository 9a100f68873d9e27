"""Whose a folder is that a command is given to write into, and whether it can."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from agent.process.errors import ConfigError
from agent.process.shown import shown


def begin_in(folder: Path, begun: str, setting: str) -> None:
    """Make `folder` for work that the same command goes on with when it is given again.

    Raises:
        ConfigError: as `check_begun`.
    """
    check_begun(folder, begun, setting)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, setting, error) from error


def check_begun(folder: Path, begun: str, setting: str) -> None:
    """Look whether work may begin, or go on, in `folder`; nothing is made.

    Work that may still be refused looks first, and makes the folder with the first thing that is
    worth keeping: what is refused leaves nothing behind.

    Args:
        begun: the file that this work writes there first.
        setting: what named the folder, for people.

    Raises:
        ConfigError: it is no folder, cannot be written, or holds other things and not `begun`: it
            is another's, whose files this work would mix with its own, or replace.
    """
    try:
        try_writing(folder)
        # Hidden: what a process left that was killed while it wrote the first file.
        there = folder.iterdir() if folder.exists() else ()
        others = [path.name for path in there if not path.name.startswith(".")]
    except OSError as error:
        raise _unusable(folder, setting, error) from error
    if others and begun not in others:
        raise ConfigError(
            f"{setting}: {folder} holds {shown(min(others))} and no {begun}: it is not this "
            "command's; name a new folder"
        )


def try_writing(folder: Path) -> None:
    """Raises the OSError of writing into `folder`, or making it, where that cannot be done.

    Nothing is changed.
    """
    places = (folder.absolute(), *folder.absolute().parents)
    there = next(path for path in places if os.path.lexists(path))
    code = 0
    if not there.is_dir():
        code = errno.ENOTDIR
    elif not os.access(there, os.W_OK | os.X_OK):
        is_read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY)
        code = errno.EROFS if is_read_only else errno.EACCES
    if code:
        raise OSError(code, os.strerror(code))


def _unusable(folder: Path, setting: str, error: OSError) -> ConfigError:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return ConfigError(f"{setting}: {folder} is no folder; name another one")
    return ConfigError(f"{setting}: cannot write to {folder} ({error.strerror}); name another one")
