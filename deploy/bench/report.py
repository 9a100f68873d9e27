"""Writes one report on a comparison, from the results that there are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.durable import replace_file
from agent.process.optional import PackageError, needing
from deploy.bench.grid import Grid
from deploy.bench.results import read_cells
from deploy.bench.tables import Rows, cost_table, figures_table, matrix_table
from deploy.local.placement import BadSetting
from deploy.local.table import conditions_of

REPORT, CURVES = "report.md", "curves.png"
_FIRST_LINE = re.compile(r"# \d+ methods compared\n")
FIGURES = """\
Success on evaluation init states that training never sees, the same states and noise for every
method, in percent; differences in points. Mean over seeds ± standard error, with Student's 95%
interval; of a single seed, in brackets, the standard error of its trials alone. gain: final less
base over the trained tasks. NBT: success on a task when it was learned less later success, at the
end (final) or over all later rows (LIBERO); positive is forgetting. FWT: success on a task just
before it is learned less the base's. – is what was not measured.
"""
COST = """\
A mean over the seeds. What cells share was run once and counts for each of them here; the time that
is a cell's own is beside it. A chunk forward is one answer of the policy while acting. Starts count
how often the processes were started, a shared beginning's included.
"""


def refuse_foreign(grid: Grid) -> None:
    """Raises BadSetting if a file is there that is no report of ours, and would be replaced."""
    path = grid.out / REPORT
    try:
        is_ours = _FIRST_LINE.match(path.read_text("utf-8", "replace")) is not None
    except FileNotFoundError:
        path = grid.out / CURVES  # drawn before the report is written, of results
        is_ours = grid.results.is_dir() or not os.path.lexists(path)
    except NotADirectoryError as error:
        raise BadSetting(f"out: {grid.out} is no folder; choose another out=FOLDER") from error
    if not is_ours:
        raise BadSetting(f"{path} is there and no comparison wrote it; choose another out=FOLDER")


def write_report(grid: Grid) -> list[Path]:
    """Returns the files written.

    Raises ResultError for a file that is no result of its cell, BadSetting, OSError, StorageError.
    """
    results, missing = read_cells(grid.results, grid.cells)
    rows = {
        method: [
            results[cell.name]
            for cell in grid.cells
            if cell.method == method and cell.name in results
        ]
        for method in grid.methods
    }
    grid.out.mkdir(parents=True, exist_ok=True)
    pictures = _draw(rows, grid.out)
    lines = [f"# {len(grid.methods)} methods compared", "", *_missing(missing)]
    if results:
        lines += [*_what_was_run(grid, rows), *_sections(rows, pictures)]
    path = grid.out / REPORT
    replace_file(path, ("\n".join(lines).rstrip() + "\n").encode())
    return [path, *pictures]


def _missing(names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"**Incomplete.** Not measured: {', '.join(f'`{name}`' for name in names)}.", ""]


def _sections(rows: Rows, pictures: list[Path]) -> list[str]:
    lines = ["## Success, forgetting and transfer", "", FIGURES, *figures_table(rows)]
    if pictures:
        lines += ["## Learning curves", "", f"![success in training]({pictures[0].name})", ""]
    lines += ["## Success matrices", "", "The seeds' trials together.", ""]
    for method, results in rows.items():
        if results:
            lines += [f"### {method}", "", *matrix_table(results)]
    return [*lines, "## Cost", "", COST, *cost_table(rows)]


def _what_was_run(grid: Grid, rows: Rows) -> list[str]:
    every = [result for results in rows.values() for result in results]
    first = every[0]
    summary, settings = first.summary, first.summary["settings"]
    trials = sorted({n for r in every for row in r.summary["matrix"]["trials"] for n in row if n})
    machines = sorted({_flat(result.machine) for result in every})
    versions = sorted({_flat(result.summary["settings"]["versions"]) for result in every})
    command = f"perennial bench {' '.join(grid.shared)} method={_methods(grid.methods)}"
    return [
        f"`{command}`",
        "",
        f"- Suite `{summary['suite']}`, model `{settings['model']}`; trained in this order, unless "
        f"the method says otherwise: {', '.join(summary['train_tasks'])}; held out: "
        f"{', '.join(summary['held_out_tasks']) or 'none'}.",
        f"- Rates: {conditions_of(summary)}; n = {' or '.join(map(str, trials))} a cell and seed.",
        *(f"- Versions: {each}." for each in versions),
        *(f"- Machine: {each}." for each in machines),
        "",
    ]


def _methods(methods: Mapping[str, int]) -> str:
    """As they are given: with the number of seeds of each, where they differ."""
    most = max(methods.values())
    names = [name if count == most else f"{name}:{count}" for name, count in methods.items()]
    return f"{','.join(names)} seeds={most}"


def _flat(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _draw(rows: Rows, folder: Path) -> list[Path]:
    """The pictures; none without a matplotlib that works or without anything that was trained."""
    if not any(result.curve for results in rows.values() for result in results):
        return []
    try:
        with needing("report"):
            from deploy.bench.drawing import draw_curves
    except PackageError:
        return []
    path = folder / CURVES
    draw_curves(rows, path)
    return [path]
