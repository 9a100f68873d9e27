"""The base of every error that is raised on purpose, and the one for what a user can mend."""

from __future__ import annotations


class PerennialError(Exception):
    """Base of every error that Perennial raises on purpose."""


class ConfigError(PerennialError):
    """A setting, file or address that cannot work; one line, with the way out."""
