"""What a process does before its work: arguments, config, threads, signals, one-line errors.

Nothing heavy is imported before `--help` was answered and the thread counts are in the environment.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
from collections.abc import Callable
from typing import Protocol, TypeVar

from agent.process.descriptors import raise_descriptor_limit
from agent.process.errors import ConfigError, PerennialError
from agent.process.paths import user_path
from agent.process.settings import load_config
from agent.process.shown import complain, start_logging
from agent.process.stopping import stoppable

BAD_INPUT = 2  # exit status
FAILED = 1
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class ProcessConfig(Protocol):
    """The settings that every process has."""

    threads: int
    die_with_parent: bool


Config = TypeVar("Config", bound=ProcessConfig)


def run_process(
    program: str,
    purpose: str,
    schema: Callable[[], type[Config]],
    work: Callable[[Config], None],
    argv: list[str] | None = None,
    stopped_status: int = 0,
    preflight: Callable[[Config, str], None] | None = None,
) -> int:
    """Parse `argv`, prepare the process, run `work`, and return the exit status.

    Whatever the user can mend ends in one line on stderr, because a supervisor shows the last line
    of a log: status 2 for bad input, 1 for a failure while running, `stopped_status` if a signal
    ended it while it worked. `schema` is called after the arguments were parsed and returns the
    dataclass of the settings. `preflight` raises for what is known to fail before anything starts;
    it gets what --policy= says.
    """
    with stoppable(program, stopped_status):
        return _run(program, purpose, schema, work, argv, preflight)


def _run(
    program: str,
    purpose: str,
    schema: Callable[[], type[Config]],
    work: Callable[[Config], None],
    argv: list[str] | None,
    preflight: Callable[[Config, str], None] | None,
) -> int:
    parent = os.getppid()
    parser = argparse.ArgumentParser(prog=program, description=purpose)
    parser.add_argument(
        "--config", type=user_path, metavar="FILE.yaml", help="settings to start from"
    )
    parser.add_argument("--check", action="store_true", help="check the settings, start nothing")
    if preflight is not None:
        parser.add_argument(
            "--preflight", action="store_true",
            help="check the settings and what they name here, start nothing",
        )  # fmt: skip
        parser.add_argument(
            "--policy", default="", metavar="LINE",
            help="for --preflight of who asks an agent: what the agent's own has printed",
        )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    arguments = parser.parse_intermixed_args(argv)  # options may stand between settings
    try:
        config = load_config(schema(), arguments.config, arguments.overrides)
        if arguments.check:
            return 0
        set_thread_count(config.threads)
        if preflight is not None and arguments.preflight:
            preflight(config, arguments.policy)
            return 0
        raise_descriptor_limit()
        if config.die_with_parent:
            die_with(parent)
        start_logging(logging.WARNING)
        work(config)
    except PerennialError as error:
        complain(program, error)
        return BAD_INPUT if isinstance(error, ConfigError) else FAILED
    return 0


def thread_variables(threads: int) -> dict[str, str]:
    """The environment that keeps numerical libraries to so many threads, which sleep when idle.

    Idle threads that spin take the core that another process needs.
    """
    return {**dict.fromkeys(_THREAD_VARIABLES, str(threads)), "OMP_WAIT_POLICY": "PASSIVE"}


def set_thread_count(threads: int) -> None:
    """Keep this process to its share of the cores.

    Works only before numpy and torch are imported.
    """
    for name, value in thread_variables(threads).items():
        if name in _THREAD_VARIABLES:
            os.environ[name] = value
        else:
            os.environ.setdefault(name, value)


def die_with(parent: int) -> None:
    """Ask the kernel for SIGTERM when `parent` ends; end at once if it already has (Linux).

    Raises:
        ConfigError: the system has no such service.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        status = libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    except AttributeError:
        raise ConfigError("die_with_parent: only Linux can do that; drop the setting") from None
    if status != 0:
        raise ConfigError(f"die_with_parent: prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        signal.raise_signal(signal.SIGTERM)
