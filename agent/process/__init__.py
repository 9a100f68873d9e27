"""What a process does before its work: arguments, config, threads, signals, one-line errors.

Nothing heavy is imported before `--help` was answered and the thread counts are in the environment.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from agent.wire.errors import ConfigError, PerennialError

if TYPE_CHECKING:
    from omegaconf import DictConfig

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
) -> int:
    """Parses `argv`, prepares the process, runs `work`, and returns the exit status.

    Whatever the user can mend ends in one line on stderr: status 2 for bad input, 1 for a failure
    while running. `schema` is called after the arguments were parsed and returns the dataclass of
    the settings.
    """
    parent = os.getppid()
    parser = argparse.ArgumentParser(prog=program, description=purpose)
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="settings to start from")
    parser.add_argument("--check", action="store_true", help="check the settings, start nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(schema(), arguments.config, arguments.overrides)
        if arguments.check:
            return 0
        set_thread_count(config.threads)
        if config.die_with_parent:
            die_with(parent)
        work(config)
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return BAD_INPUT
    except PerennialError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return FAILED
    return 0


def load_config(schema: type[Config], path: Path | None, overrides: list[str]) -> Config:
    """`schema` with the values of the YAML file, then of `overrides` in Hydra's syntax.

    Raises ConfigError naming the file or key that is wrong.
    """
    from hydra import compose, initialize
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if path is not None and not path.is_file():
        raise ConfigError(f"--config: no such file: {path}")
    try:
        node = OmegaConf.structured(schema)
        if path is not None:
            node = OmegaConf.merge(node, OmegaConf.load(path))
        _open_tables(node)
        ConfigStore.instance().store("process", node)
        with initialize(config_path=None, version_base="1.3"):
            loaded = OmegaConf.to_object(compose("process", overrides))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{path or 'config'}: {_explain(error, schema)}") from error
    assert isinstance(loaded, schema)
    return loaded


def _open_tables(node: DictConfig) -> None:
    """Lets an override put any key into fields of type dict; all else stays closed to typos."""
    from omegaconf import DictConfig, OmegaConf

    for name in node:
        value = node._get_node(name)
        if isinstance(value, DictConfig):
            if OmegaConf.get_type(value) is dict:
                OmegaConf.set_struct(value, False)
            else:
                _open_tables(value)


def _explain(error: Exception, schema: type[ProcessConfig]) -> str:
    """One line for what Hydra and OmegaConf say in many."""
    reason = error.__cause__ or error
    lines = [str(e).strip().partition("\n")[0] for e in (error, reason)]
    text = ": ".join(dict.fromkeys(lines))
    if "not in" in str(reason) or "Could not override" in text:
        text += f" (settings: {', '.join(schema.__dataclass_fields__)})"  # type: ignore[attr-defined]
    return text


def set_thread_count(threads: int) -> None:
    """Each process keeps to its share of the cores; idle OpenMP threads sleep instead of spinning.

    Works only before numpy and torch are imported.
    """
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def die_with(parent: int) -> None:
    """Asks the kernel for SIGTERM when `parent` ends; ends at once if it already has."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise ConfigError(f"die_with_parent: prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        signal.raise_signal(signal.SIGTERM)
