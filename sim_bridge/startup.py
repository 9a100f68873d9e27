"""What all bridge processes do before their work: arguments, config, threads, signals, errors."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar, cast

from agent.wire.errors import ConfigError, PerennialError

BAD_INPUT = 2  # exit status
FAILED = 1
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class ProcessConfig(Protocol):
    """What the settings of every process of the bridge have."""

    threads: int
    die_with_parent: bool


Config = TypeVar("Config", bound=ProcessConfig)


class StopFlag:
    """True once SIGTERM or SIGINT came."""

    def __init__(self) -> None:
        self._is_set = False
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def __call__(self) -> bool:
        return self._is_set

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._is_set = True


def run_process(
    program: str,
    purpose: str,
    schema: type[Config],
    work: Callable[[Config, StopFlag], None],
    argv: list[str] | None = None,
) -> int:
    """Parses `argv`, prepares the process, runs `work`, and returns the exit status.

    Whatever the user can mend ends in one line on stderr: status 2 for bad input, 1 for a failure
    while running. Heavy packages are imported after `--help` was answered.
    """
    parent = os.getppid()
    parser = argparse.ArgumentParser(prog=program, description=purpose)
    parser.add_argument("--config", type=Path, help="YAML file with the settings")
    parser.add_argument("--check", action="store_true", help="check the settings, start nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(schema, arguments.config, arguments.overrides)
        if arguments.check:
            return 0
        for variable in _THREAD_VARIABLES:
            os.environ[variable] = str(config.threads)
        stop = StopFlag()
        if config.die_with_parent:
            die_with(parent)
        work(config, stop)
    except PerennialError as error:
        # One line: a supervisor shows the last one of a log.
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, ConfigError) else FAILED
    return 0


def load_config(schema: type[Config], path: Path | None, overrides: list[str]) -> Config:
    """`schema` with the values of the YAML file and then of `overrides` (Hydra's syntax).

    Raises ConfigError naming the file or key that is wrong.
    """
    from hydra import compose, initialize
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if path is not None and not path.is_file():
        raise ConfigError(f"--config: no such file: '{path}'")
    base = OmegaConf.structured(schema)
    try:
        if path is not None:
            base.merge_with(OmegaConf.load(path))
        # From the store and not from the file's folder, whose groups would shadow keys.
        ConfigStore.instance().store("bridge", base)
        with initialize(config_path=None, version_base="1.3"):
            return cast(Config, OmegaConf.to_object(compose("bridge", overrides)))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        causes = [str(each).strip().splitlines()[0] for each in (error, error.__cause__) if each]
        text = ": ".join(causes)
        raise ConfigError(f"config: {text} (settings: {', '.join(base)})") from error


def die_with(parent: int) -> None:
    """Asks the kernel for SIGTERM when `parent` ends; ends at once if it already has."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise ConfigError(f"die_with_parent: prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        signal.raise_signal(signal.SIGTERM)
