"""Runs the missing cells one after another; killed at any moment, the same command goes on."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
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

from benchmarks.tabletop_grpo.cells import DEMO_FRAMES, DEMO_SEED, DEMOS, Cell
from benchmarks.tabletop_grpo.results import (
    Result,
    ResultError,
    collect_result,
    read_result,
    write_result,
)
from deploy.local.changes import find_differences
from deploy.local.processes import PACKAGE_ROOT, module_command, module_environment
from deploy.local.progress import Plan, Progress
from deploy.local.records import read_records
from deploy.local.settings import compose_run
from deploy.local.summary import SETTING_SECTIONS
from deploy.local.tail import JsonTail

POLL_S = 1.0
STOP_LIMIT_S = 60.0  # a run stops its own processes within `stop_limit_s` each
BAR_STEPS = 1000


class CellFailed(Exception):
    """A program of a cell ended with an error; the text has its last line and its log."""


def run_cells(cells: list[Cell], runs: Path, results: Path, console: Console) -> None:
    """Finishes every cell that has no result yet. `runs` is relative to the repository.

    Raises CellFailed, ResultError for a result made with other settings, BadSetting.
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
    words = ["run", *cell.overrides, f"run_dir={runs / cell.name}", "report=false"]
    progress = RunProgress(
        run_dir, Plan.from_learner(compose_run(cell.overrides).processes["learner"])
    )
    with _bars(console) as bars:
        bar = bars.add_task(cell.name, total=BAR_STEPS, stage="Starting")

        def show() -> None:
            share, stage = progress.look()
            bars.update(bar, completed=int(share * BAR_STEPS), stage=stage)

        _run_program("deploy.local.cli", words, log_path, show)
    # Also of a run that was reported before: a recount that disagrees must not pass later.
    _run_program("deploy.local.report", [str(run_dir)], log_path)
    summary = json.loads((run_dir / "summary.json").read_text())
    return collect_result(cell.name, cell.overrides, read_records(run_dir), summary)


class RunProgress:
    """What a run's files say of how far it is."""

    def __init__(self, run_dir: Path, plan: Plan) -> None:
        self._progress = Progress(plan)
        self._events = JsonTail(run_dir / "learner" / "progress.jsonl")
        self._ends = JsonTail(run_dir / "sim-0" / "client.jsonl")

    def look(self) -> tuple[float, str]:
        """Share done in [0, 1], and the stage in words."""
        self._progress.add_events(self._events.read())
        self._progress.add_ends(self._ends.read())
        return self._progress.share_done(), self._progress.stage()


def make_demonstrations(runs: Path, console: Console) -> None:
    """The expert's demonstrations; complete shards are kept."""
    words = [
        "collect", "--suite=tabletop", f"--out={DEMOS}",
        f"--frames={DEMO_FRAMES}", f"--seed={DEMO_SEED}", "--shard-frames=5000", "--workers=2",
    ]  # fmt: skip
    with console.status("demonstrations"):
        _run_program("sim_bridge.demos", words, PACKAGE_ROOT / runs / "demos.log")


def _run_program(
    module: str, words: list[str], log_path: Path, show: Callable[[], None] | None = None
) -> None:
    """Runs a module of ours to its end, its output in `log_path`; `show` is called meanwhile."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        child = subprocess.Popen(
            module_command(module, words),
            cwd=PACKAGE_ROOT,
            env=module_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            while child.poll() is None:
                if show:
                    show()
                time.sleep(POLL_S)
        finally:
            _stop(child)
    if child.returncode != 0:
        lines = log_path.read_text(errors="replace").strip().splitlines()
        reason = lines[-1].strip() if lines else "it printed nothing"
        raise CellFailed(f"{module} ended with {child.returncode}: {reason} (log: {log_path})")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Leaves no process behind: Ctrl-C reaches the child as well, SIGTERM does not."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


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
    return Bars(*columns, console=console, transient=True)
