"""Metrics of the agent that nothing happens for: settings, and what is measured when asked for."""

from __future__ import annotations

import os
from pathlib import Path

from agent.config import AgentConfig
from agent.journal import EPISODES_NAME, LEDGER_NAME
from agent.ledger import LedgerReader
from agent.measuring import add_disk_sources, program_version
from agent.metrics import AgentMetrics
from agent.recovery import QUARANTINE_NAME


def measure_when_asked(metrics: AgentMetrics, config: AgentConfig) -> None:
    """Registers the sources, which run on threads of the scrape, and shows the settings."""
    metrics.latency_budget_seconds.set(config.latency_budget_s)
    metrics.build_info.labels(program_version(), "agent").set(1)
    state_dir = Path(config.state_dir)
    add_disk_sources(metrics, {"state": state_dir, "adapters": Path(config.adapters_dir)})

    def measure_store() -> None:
        for state, size_bytes in episode_store_bytes(state_dir).items():
            metrics.episode_store_bytes.labels(state).set(size_bytes)

    metrics.add_source("episode_store", measure_store, metrics.episode_store_bytes)


def episode_store_bytes(state_dir: Path) -> dict[str, int]:
    """Size of the episode files by state. Raises OSError, StorageError, sqlite3.Error."""
    folder = state_dir / EPISODES_NAME
    reader = LedgerReader(state_dir / LEDGER_NAME)
    try:
        sealed_bytes = reader.sealed_bytes()
    finally:
        reader.close()
    # A file that is being sealed may be in one of the two sums only.
    open_bytes = max(0, _files_bytes(folder) - sealed_bytes)
    quarantined_bytes = _files_bytes(folder / QUARANTINE_NAME)
    return {"open": open_bytes, "sealed": sealed_bytes, "quarantined": quarantined_bytes}


def _files_bytes(folder: Path) -> int:
    if not folder.exists():
        return 0
    size_bytes = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_file():
                    size_bytes += entry.stat().st_size
            except FileNotFoundError:
                pass  # acknowledged meanwhile
    return size_bytes
