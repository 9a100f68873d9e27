"""Runs the missing cells one after another; killed at any moment, the same command goes on."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from agent.process.changes import find_differences
from benchmarks.tabletop_grpo.cells import DEMO_FRAMES, DEMO_SEED, DEMOS, Cell
from deploy.bench.programs import RunProgress, run_program
from deploy.bench.results import (
    Result,
    ResultError,
    collect_result,
    read_result,
    write_result,
)
from deploy.local.processes import PACKAGE_ROOT
from deploy.local.records import read_records
from deploy.local.settings import compose_run
from deploy.local.summary import SETTING_SECTIONS

BAR_STEPS = 1000


def run_cells(cells: list[Cell], runs: Path, results: Path, console: Console) -> None:
    """Finishes every cell that has no result yet. `runs` is relative to the repository.

    Raises ProcessFailed, ResultError for a result made with other settings, BadSetting.
    """
    for cell in cells:
        path = results / f"{cell.name}.json"
        if path.is_file():
            result = read_result(path)
            _refuse_other_settings(result, cell, path)
            console.print(f"kept      {_describe(result)}", highlight=False)
            continue
        if cell.needs_demonstrations:
            make_demonstrations(runs, console)
        result = run_cell(cell, runs, console)
        _refuse_other_settings(result, cell, PACKAGE_ROOT / runs / cell.name)
        write_result(results, result)
        console.print(f"finished  {_describe(result)}", highlight=False)


def run_cell(cell: Cell, runs: Path, console: Console) -> Result:
    """One `perennial run`, from wherever it was left, and its report."""
    run_dir = PACKAGE_ROOT / runs / cell.name
    log_path = run_dir.with_suffix(".log")
    words = [*cell.overrides, f"run_dir={runs / cell.name}", "report=false"]
    progress = RunProgress(run_dir, compose_run(cell.overrides).processes["learner"])
    with _bars(console) as bars:
        bar = bars.add_task(cell.name, total=BAR_STEPS, stage="Starting")

        def show() -> None:
            share, stage = progress.look()
            bars.update(bar, completed=int(share * BAR_STEPS), stage=stage)

        run_program("deploy.local.run", words, log_path, show, cwd=PACKAGE_ROOT)
    # Also of a run that was reported before: a recount that disagrees must not pass later.
    run_program("deploy.local.report", [str(run_dir)], log_path, cwd=PACKAGE_ROOT)
    summary = json.loads((run_dir / "summary.json").read_text())
    return collect_result(cell.name, cell.overrides, read_records(run_dir), summary)


def make_demonstrations(runs: Path, console: Console) -> None:
    """The expert's demonstrations; complete shards are kept."""
    words = [
        "collect", "--suite=tabletop", f"--out={DEMOS}",
        f"--frames={DEMO_FRAMES}", f"--seed={DEMO_SEED}", "--shard-frames=5000", "--workers=2",
    ]  # fmt: skip
    with console.status("demonstrations"):
        log_path = PACKAGE_ROOT / runs / "demos.log"
        run_program("sim_bridge.demos", words, log_path, cwd=PACKAGE_ROOT)


def _refuse_other_settings(result: Result, cell: Cell, path: Path) -> None:
    """Results of another budget must not stand beside new ones in one table.

    A setting that came with a later release counts as recorded with what it shipped with, which is
    what the cell has unless it names it.
    """
    learner = compose_run(cell.overrides).processes["learner"]
    wanted = {name: learner[name] for name in SETTING_SECTIONS}
    had = {name: result.summary["settings"][name] for name in SETTING_SECTIONS}
    found = find_differences(had, wanted, defaults=wanted)
    changed = [difference for difference in found if difference.kind == "changed"]
    if tuple(result.overrides) != cell.overrides or changed:
        raise ResultError(
            f"{path} was made with other settings than {cell.name} has now; "
            "remove the cell's result and run folder to run it again"
        )


def _describe(result: Result) -> str:
    """`grpo-seed0  52.1 min  44% → 70%`."""
    summary = result.summary
    return (
        f"{result.name:<24} {summary['wall_s'] / 60:5.1f} min  trained tasks "
        f"{100 * summary['base_avg']:.0f}% → {100 * summary['final_avg']:.0f}%"
    )


def _bars(console: Console) -> Bars:
    """One line for the cell that runs; it goes once the cell is finished."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[stage]}", style="dim"),
    )
    return Bars(*columns, console=console, transient=True, disable=not console.is_terminal)
