"""Whose a folder is that a command is given to write into."""

from __future__ import annotations

from pathlib import Path

from agent.process.errors import ConfigError
from agent.process.shown import shown


def begin_in(folder: Path, begun: str, setting: str) -> None:
    """Make `folder` for work that the same command goes on with when it is given again.

    Args:
        begun: the file that this work writes there first.
        setting: what named the folder, for people.

    Raises:
        ConfigError: it is no folder, or holds other things and not `begun`: it is another's, whose
            files this work would mix with its own, or replace.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Hidden: what a process left that was killed while it wrote the first file.
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{setting}: {folder} is no folder; name another one") from error
    except OSError as error:
        raise ConfigError(
            f"{setting}: cannot write to {folder} ({error.strerror}); name another one"
        ) from error
    if others and begun not in others:
        raise ConfigError(
            f"{setting}: {folder} holds {shown(min(others))} and no {begun}: it is not this "
            "command's; name a new folder"
        )
