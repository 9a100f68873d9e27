"""Runs what is missing, one run after another; killed at any moment, the same command goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from agent.durable import LOCK_NAME, StorageError
from agent.process.json_files import DamagedFile
from agent.process.terminal import telling
from agent.process.words import setting_of
from deploy.bench.cells import Cell, Step, compose, plan_cell, require_model
from deploy.bench.estimate import Estimate, clock, describe, estimate, own_effort
from deploy.bench.fork import fork_run
from deploy.bench.programs import RunProgress, run_program
from deploy.bench.results import (
    Result,
    ResultError,
    collect_result,
    read_cells,
    refuse_other_settings,
    write_result,
)
from deploy.local.checker import recount
from deploy.local.ledgers import RecordError
from deploy.local.placement import BadSetting
from deploy.local.processes import ProcessFailed
from deploy.local.progress import Plan
from deploy.local.records import read_records
from deploy.local.runfolder import RunFolder, find_state, hold_lock
from deploy.local.summary import build_summary

DISK = (OSError, StorageError)
LOCK_WAIT_S = 60.0  # a run whose comparison was killed stops its own processes meanwhile
LOCK_POLL_S = 0.2
KNOWN_AFTER = 64  # episodes, from which on this session's own pace says how long the rest takes


def run_missing(
    cells: Sequence[Cell],
    runs: Path,
    results: Path,
    console: Console,
    on_result: Callable[[], object],
    *,
    is_estimate: bool,
) -> list[str]:
    """Says what it costs, then runs every cell without a result; returns those that failed.

    on_result: called after each cell that was finished. is_estimate: runs nothing. Raises
    ResultError for a result of other settings, BadSetting.
    """
    with console.status("Reading the settings of every cell"):
        found, missing = read_cells(results, cells)
        plans = [plan_cell(cell) for cell in cells]
    wanted = [step for step in plans if step.folder in missing]
    cost = estimate(plans, found, steps_left(runs, wanted))
    for line in describe(cost, len(cells)):
        console.print(line, highlight=False)
    if is_estimate or not wanted:
        return []
    for step in wanted:
        require_model(step)
    with hold(runs):
        runner = Runner(runs, results, cost, console)
        return runner.run({cell.name: cell for cell in cells}, wanted, on_result)


class Runner:
    """Runs cells below the folder `runs`, whose lock it must hold."""

    def __init__(self, runs: Path, results: Path, found: Estimate, console: Console) -> None:
        self._runs, self._results, self._console = runs, results, console
        self._pace = Pace(found)
        self._failed: dict[str, str] = {}  # step's folder -> why
        self._present = ""  # what is done now, for people

    def run(
        self, cells: Mapping[str, Cell], plans: Sequence[Step], on_result: Callable[[], object]
    ) -> list[str]:
        """Finishes the cells of `plans`; returns the names of those that failed.

        on_result: called after each cell that was finished.
        """
        with telling(lambda: self._present, self._console):
            self._finish_all(cells, plans, on_result)
        return [step.folder for step in plans if step.folder in self._failed]

    def _finish_all(
        self, cells: Mapping[str, Cell], plans: Sequence[Step], on_result: Callable[[], object]
    ) -> None:
        for step in plans:
            try:
                for each in steps_left(self._runs, [step]):
                    self._finish(each)
                result = self._collect(cells[step.folder])
            except (
                ProcessFailed, RecordError, ResultError, DamagedFile, BadSetting, *DISK
            ) as error:  # fmt: skip
                self._failed[step.folder] = str(error)
                told = Text.assemble(("failed", "red"), f"    {step.folder}: {error}")
                self._console.print(told, highlight=False)
                continue
            write_result(self._results, result)
            self._tell(f"finished  {describe_result(result)}")
            on_result()

    def _tell(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)

    def _finish(self, step: Step) -> None:
        """Brings one run to its end, from wherever it is."""
        if step.folder in self._failed:
            raise ProcessFailed(f"it goes on from {step.folder}: {self._failed[step.folder]}")
        run_dir = self._runs / step.folder
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        self._present = f"{run_dir.name}  waiting until no other process has it"
        _wait_until_free(run_dir)
        if RunFolder(run_dir).is_finished():
            return  # by the process that was waited for
        self._tell(f"running   {step.folder}")
        config = compose(step.overrides)
        try:
            if step.parent is not None:
                _wait_until_free(self._runs / step.parent.folder)  # its run may still be ending
                fork_run(self._runs / step.parent.folder, run_dir, config)
            self._run_processes(step, run_dir)
        except (ProcessFailed, *DISK) as error:
            self._failed[step.folder] = str(error)
            raise
        self._pace.finish(step)

    def _run_processes(self, step: Step, run_dir: Path) -> None:
        learner = compose(step.overrides).processes["learner"]
        own = [setting_of("run_dir", str(run_dir)), "report=false", f"parent_pid={os.getpid()}"]
        progress = RunProgress(run_dir, learner)
        planned = Plan.from_learner(learner)
        episodes = planned.train_episodes + planned.eval_episodes
        with _bars(self._console) as bars:
            bar = bars.add_task(run_dir.name, total=1.0, stage="Starting", left="")

            def show() -> None:
                share, stage = progress.look()
                left = f"{clock(self._pace.left_s(step, share * episodes))} left in all"
                self._present = f"{run_dir.name}  {share:.0%}  {left}  {stage}"
                bars.update(bar, completed=share, stage=stage, left=left)

            log_path = run_dir.parent / f"{run_dir.name}.log"
            run_program("deploy.local.run", [*step.overrides, *own], log_path, show)

    def _collect(self, cell: Cell) -> Result:
        run_dir = self._runs / cell.name
        records = read_records(run_dir)
        recounted = recount(records)
        if recounted.problems:
            raise RecordError(f"{run_dir}: a recount differs: {'; '.join(recounted.problems)}")
        summary = build_summary(records, recounted)
        result = collect_result(cell.name, cell.overrides, records, summary)
        refuse_other_settings(result, compose(cell.overrides), run_dir)
        return result


class Pace:
    """How long everything will take that is not done, from how fast this session is."""

    def __init__(self, found: Estimate) -> None:
        self._episodes = {step.folder: own_effort(step).episodes for step in found.steps}
        self._episode_s = found.episode_s
        self._finished = 0  # planned episodes of the steps that this session finished
        self._began_s = time.monotonic()
        self._present: tuple[str, float] = ("", 0.0)  # step, and what it had when this session came

    def finish(self, step: Step) -> None:
        """The step is done."""
        self._finished += self._episodes.pop(step.folder, 0)

    def left_s(self, step: Step, done: float) -> float:
        """done: planned episodes of the run, its beginning's too, that are over."""
        if self._present[0] != step.folder:
            self._present = (step.folder, done)
        gained = self._finished + done - self._present[1]
        pace_s = self._episode_s
        if gained >= KNOWN_AFTER:
            pace_s = (time.monotonic() - self._began_s) / gained
        return max(0.0, sum(self._episodes.values()) - (done - self._present[1])) * pace_s


def steps_left(runs: Path, plans: Sequence[Step]) -> list[Step]:
    """What must still be run for the cells of `plans`, in order, each once.

    A run that has begun needs its beginning no more.
    """
    left: dict[Step, None] = {}
    for plan in plans:
        needed: list[Step] = []
        for step in reversed(plan.chain):
            if not RunFolder(runs / step.folder).is_finished():
                needed.append(step)
            if find_state(runs / step.folder):
                break
        left |= dict.fromkeys(reversed(needed))
    return list(left)


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds the folder of all runs for this process. Raises BadSetting if another one does."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    in_use = f"{folder} is in use by another comparison; wait for it, or choose out=FOLDER"
    with hold_lock(descriptor, folder / LOCK_NAME, in_use):
        yield


def _wait_until_free(run_dir: Path) -> None:
    """Until no other process runs it. Raises BadSetting when it takes too long."""
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while run_dir.is_dir():
        try:
            with RunFolder(run_dir).lock():
                return
        except BadSetting:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(LOCK_POLL_S)


def describe_result(result: Result) -> str:
    """`ewc-seed0  52.1 min  trained tasks 44% → 70%`."""
    summary = result.summary
    rates = (summary["base_avg"], summary["final_avg"])
    told = " → ".join(f"{100 * rate:.0f}%" for rate in rates if rate is not None)
    return f"{result.name:<24} {result.cost['own_wall_s'] / 60:5.1f} min  trained tasks {told}"


def _bars(console: Console) -> Bars:
    """One line for the run that is under way; it goes once that is finished."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[stage]}", style="dim"),
    )
    return Bars(*columns, console=console, transient=True, disable=not console.is_terminal)
