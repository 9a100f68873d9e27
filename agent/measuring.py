"""What every process exports of itself: its version, its health, and the space for its data."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path

from agent.http import Health
from agent.metrics import ProcessMetrics


def add_disk_sources(metrics: ProcessMetrics, folders: Mapping[str, Path]) -> None:
    """folders: label -> path; one that does not exist yet is measured where it will be made.

    Each is a source of its own: where one lies on a dead disk, the others are still measured.
    """
    for name, path in folders.items():
        metrics.add_source(
            f"disk_{name}",
            partial(_measure_disk, metrics, name, path),
            metrics.disk_free_bytes,
            metrics.disk_size_bytes,
            folder=name,
        )


def add_ready_source(metrics: ProcessMetrics, health: Callable[[], Health]) -> None:
    """health: the function that /readyz asks, too."""
    metrics.add_source("ready", lambda: metrics.ready.set(health().serving), metrics.ready)


def _measure_disk(metrics: ProcessMetrics, name: str, path: Path) -> None:
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    usage = shutil.disk_usage(there)
    metrics.disk_free_bytes.labels(name).set(usage.free)
    metrics.disk_size_bytes.labels(name).set(usage.total)


def program_version() -> str:
    """As installed; "checkout" where the sources are run as they lie."""
    try:
        return metadata.version("perennial-vla")
    except metadata.PackageNotFoundError:
        return "checkout"
