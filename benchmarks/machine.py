"""The processor that a figure was measured on."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_model() -> str:
    """Its name where Linux tells it, else the architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
