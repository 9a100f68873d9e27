"""The floor under all packages: how a process starts, and how its settings are read.

Every package may import it, so it is light: the standard library, and Hydra once settings are read.
"""

from agent.process.settings import load_config
from agent.process.startup import (
    BAD_INPUT,
    FAILED,
    ProcessConfig,
    StopFlag,
    die_with,
    run_process,
    set_thread_count,
    thread_variables,
)

__all__ = [
    "BAD_INPUT",
    "FAILED",
    "ProcessConfig",
    "StopFlag",
    "die_with",
    "load_config",
    "run_process",
    "set_thread_count",
    "thread_variables",
]
