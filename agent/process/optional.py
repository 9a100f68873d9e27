"""Packages that only some installations have: what needs one says how to get it, in a line.

A broken package raises anything while it is imported: an operator that another library lacks, a
symbol that is not found, an attribute that has gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from agent.process.errors import ConfigError, PerennialError
from agent.process.shown import printable
from agent.process.stopping import Ended

_OURS = ("agent", "learner", "sim_bridge", "deploy", "benchmarks", "__main__")
_IMPORT_MACHINERY = ("importlib", "_frozen_importlib", "_frozen_importlib_external")


class PackageError(ConfigError):
    """A package is needed here and is missing or broken."""


@contextmanager
def needing(extra: str, way_out: str = "") -> Iterator[None]:
    """Import packages of one of our extras inside; what they fail with becomes one line.

    Anything else that is raised inside passes.

    Args:
        extra: of ours, which installs them.
        way_out: where another command than pip's does.

    Raises:
        PackageError: with the command that installs what is missing.
    """
    install = way_out or f"pip install 'perennial-vla[{extra}]'"
    try:
        yield
    except (PerennialError, Ended):
        raise
    except (Exception, SystemExit) as error:
        failure = describe_failed_import(error)
        if not failure:
            raise
        raise PackageError(f"{failure}: {install}") from error


def describe_failed_import(error: BaseException) -> str:
    """Return which package cannot be imported and why; "" for an error that is no failed import.

    "the package h5py is missing", or "the package h5py is broken (RuntimeError: ...)".
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        name = error.name.partition(".")[0]
        return "" if name in _OURS else f"the package {printable(name)} is missing"
    package = _failed_package(error)
    if not package and not isinstance(error, ImportError):
        return ""
    why = f"{type(error).__name__}: {printable(error)}"
    return f"the package {package or 'that is needed'} is broken ({why}), install it anew"


def _failed_package(error: BaseException) -> str:
    """The innermost package of somebody else whose import was running when it failed."""
    package, trace = "", error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.f_code.co_name == "<module>" and name not in (*_OURS, *_IMPORT_MACHINERY):
            package = name
    return package
