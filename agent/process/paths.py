"""Which settings are paths, and what a path is that a user wrote."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from agent.process.errors import ConfigError
from agent.process.shown import shown

_ENDINGS = ("_dir", "_path")
_NAMES = frozenset({"start_adapter", "demonstrations", "demos", "work", "out", "base"})


def is_path(key: str) -> bool:
    """Whether the setting of this dotted key is a path: its last name says so."""
    name = key.rpartition(".")[2]
    return name.endswith(_ENDINGS) or name in _NAMES


def user_path(text: str) -> Path:
    """A path on a command line, as argparse's `type`: what a shell left of ~ is expanded."""
    if not text:  # "$RUN" where nobody set RUN; the working directory is not meant
        raise argparse.ArgumentTypeError("the path is empty; write . for the folder you are in")
    try:
        return Path(expand_home("path", text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def expand_home(key: str, text: str) -> str:
    """`text` with a leading ~ or ~user replaced by that home. Raises ConfigError for nobody's."""
    if "\0" in text:
        raise ConfigError(f"{key}: no path can hold a zero byte, got {shown(text)}")
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ConfigError(
            f"{key}: {shown(text)} names no user's home; write ./{text} for a folder of that name"
        )
    return expanded
