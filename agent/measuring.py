"""What every process exports of itself: its version, its health, and the space for its data."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from agent.http import Health
from agent.metrics import ProcessMetrics


def add_disk_source(metrics: ProcessMetrics, folders: Mapping[str, Path]) -> None:
    """folders: label -> path; one that does not exist yet is measured where it will be made."""

    def measure() -> None:
        for name, path in folders.items():
            there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
            usage = shutil.disk_usage(there)
            metrics.disk_free_bytes.labels(name).set(usage.free)
            metrics.disk_size_bytes.labels(name).set(usage.total)

    metrics.add_source("disk", measure, metrics.disk_free_bytes, metrics.disk_size_bytes)


def add_ready_source(metrics: ProcessMetrics, health: Callable[[], Health]) -> None:
    """health: the function that /readyz asks, too."""
    metrics.add_source("ready", lambda: metrics.ready.set(health().serving), metrics.ready)


def program_version() -> str:
    """As installed; "checkout" where the sources are run as they lie."""
    try:
        return metadata.version("perennial-vla")
    except metadata.PackageNotFoundError:
        return "checkout"
