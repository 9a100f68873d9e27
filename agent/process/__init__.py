"""The floor under all packages: how a process starts, and how its settings are read.

Every package may import it, so it is light: the standard library, and Hydra once settings are read.
"""

from agent.process.settings import load_config
from agent.process.startup import (
    BAD_INPUT,
    FAILED,
    ProcessConfig,
    die_with,
    run_process,
    set_thread_count,
    thread_variables,
)
from agent.process.stopping import Ended, StopFlag, run_command, stoppable
from agent.process.streams import OutputFailed

__all__ = [
    "BAD_INPUT",
    "FAILED",
    "Ended",
    "OutputFailed",
    "ProcessConfig",
    "StopFlag",
    "die_with",
    "load_config",
    "run_command",
    "run_process",
    "set_thread_count",
    "stoppable",
    "thread_variables",
]
