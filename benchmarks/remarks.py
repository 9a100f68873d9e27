"""Remarks that a person wrote beside a benchmark's results, for its report."""

from __future__ import annotations

from pathlib import Path

REMARKS = "remarks.md"  # what the results mean, and causes of what was missed


def remarks(results_dir: Path) -> list[str]:
    """The report's section; nothing as long as nobody wrote any."""
    path = results_dir / REMARKS
    return ["## Remarks", "", path.read_text().strip(), ""] if path.is_file() else []
